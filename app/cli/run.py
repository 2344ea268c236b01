"""`planwave run`: a goal to a running service, its waves as they run, its answer."""

import json
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from app.cli.client import FINISHED, RunClient
from app.cli.terminal import complain, harmless
from app.cli.waves import LiveTable, PlainLines, WaveView

Json = dict[str, Any]

LEFT_EARLY = 130
"""Exit code after a second Ctrl-C, as shells count it."""


def run_goal(goal: str, *, url: str, tools: Sequence[str] = (), as_json: bool = False) -> int:
    """Post the goal, with the tools its tasks may use, and follow its run.

    Returns the exit code: 0 succeeded, 1 failed or cancelled.
    """
    client = RunClient(url)
    try:
        # An argument that was no UTF-8 arrives with lone surrogates, which JSON cannot carry.
        goal = goal.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        run = client.start(goal, tools)
        if as_json:
            run = _follow(client, run, _Silent())
            typer.echo(json.dumps(run, indent=2))  # ASCII: every control character in it is escaped
        else:
            console = Console()
            with LiveTable(console) if console.is_terminal else PlainLines() as view:
                run = _follow(client, run, view)
            _show_end(run, console)
    except KeyboardInterrupt:
        complain("Left before the run had ended.")
        return LEFT_EARLY
    finally:
        client.close()
    return 0 if run["status"] == "succeeded" else 1


def _follow(client: RunClient, run: Json, view: WaveView) -> Json:
    """Show the run until it has finished. The first Ctrl-C asks to cancel it, the second leaves."""
    cancelling = False
    while True:
        try:
            view.show(run)
            if run["status"] in FINISHED and "tasks" in run:
                return run
            run = client.changed()
        except KeyboardInterrupt:
            if cancelling:
                raise
            cancelling = True
            view.say("Asking to cancel the run; Ctrl-C once more leaves without waiting for it.")
            client.cancel()


class _Silent(PlainLines):
    """Shows nothing: only the end is wanted."""

    def show(self, run: Json) -> None:
        return None

    def say(self, message: str) -> None:
        complain(message)


def _show_end(run: Json, console: Console) -> None:
    if run["status"] == "succeeded":
        result = run["result"]
        text = harmless(result if isinstance(result, str) else json.dumps(result, indent=2, ensure_ascii=False))
        if console.is_terminal:
            console.print(Text("\n" + text))
        else:
            typer.echo(f"\n{text}")
        return
    error = run.get("error") or {}
    task = f" (task {error['task_key']})" if error.get("task_key") else ""
    reason = f": {error['code']}: {error.get('message', '')}{task}" if error else "."
    complain(f"The run {'was ' if run['status'] == 'cancelled' else ''}{run['status']}{reason}")
