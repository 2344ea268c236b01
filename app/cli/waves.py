"""How a run's waves look: a live table on a terminal, a line for each change elsewhere."""

import time
from datetime import datetime
from itertools import groupby
from types import TracebackType
from typing import Any, Protocol, Self

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from app.cli.client import FINISHED
from app.cli.terminal import one_line

Json = dict[str, Any]

_MARKS = {
    "pending": ("○", "dim"),
    "running": ("●", "cyan"),
    "retrying": ("↻", "yellow"),
    "awaiting_review": ("?", "magenta"),
    "succeeded": ("✓", "green"),
    "failed": ("✗", "red"),
    "skipped": ("»", "yellow"),
    "cancelled": ("⊘", "dim"),
    "superseded": ("⊘", "dim"),
}
_STANDS_STILL = {
    "awaiting_review": "waits for a person: answer at /runs/{id}/reviews",
    "paused": "goes on after POST /runs/{id}/resume",
}
_SETTLED = {"succeeded", "failed", "skipped", "cancelled", "superseded"}
_LINES_AROUND_ROWS = 8
_RUNNING_ROWS = 8
"""Of one wave, in a table that would not fit the screen."""


class WaveView(Protocol):
    """Shows a run while it goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, run: Json) -> None:
        """The run as it is now, with its tasks."""
        ...

    def say(self, message: str) -> None:
        """A line for the person who watches."""
        ...


class PlainLines:
    """A line for each change, for logs and pipes."""

    def __init__(self) -> None:
        self._run_status = ""
        self._statuses: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, run: Json) -> None:
        """Print what is new since the last time: how the run goes on before its tasks do, how it ends after them."""
        finished = run["status"] in FINISHED
        if not finished:
            self._show_status(run)
        for task in run.get("tasks") or []:
            self._show_task(task)
        if finished:
            self._show_status(run)

    def say(self, message: str) -> None:
        """Print it."""
        typer.echo(message)

    def _show_status(self, run: Json) -> None:
        if run["status"] == self._run_status:
            return
        planned = self._run_status in {"", "queued", "planning"} and run["status"] not in FINISHED
        self._run_status = run["status"]
        more = [_size(run)] if planned else []
        if run["status"] in _STANDS_STILL:
            more.append(_what_it_waits_for(run))
        typer.echo("  ".join([f"run {one_line(run['id'])}", run["status"], *filter(None, more)]))

    def _show_task(self, task: Json) -> None:
        status, key = task["status"], task["key"]
        if status == self._statuses.get(key, "pending"):
            return
        self._statuses[key] = status
        shown = one_line(key, 40)
        if status == "succeeded":
            typer.echo(f"{shown} succeeded in {_spent(task)}")
        elif status == "running":
            typer.echo(f"wave {task['wave']}  {shown}  running   {one_line(task['description'], 100)}")
        else:
            typer.echo(f"{shown} {status}")


class LiveTable:
    """A table of tasks by wave that moves while the run does."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._run: Json | None = None
        self._message = ""
        self._began = time.monotonic()
        self._running_since: dict[str, float] = {}
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, run: Json) -> None:
        """Take over the newest state; the table redraws itself."""
        now = time.monotonic()
        running = {task["key"] for task in run.get("tasks") or [] if _is_running(task)}
        self._running_since = {key: self._running_since.get(key, now) for key in running}
        self._run = run

    def say(self, message: str) -> None:
        """Show it under the table."""
        self._message = message

    def _render(self) -> RenderableType:
        run = self._run
        if run is None:
            return Text("")
        tasks: list[Json] = run.get("tasks") or []
        parts: list[RenderableType] = [Text(one_line(run["goal"], 200), style="bold")]
        if tasks:
            parts.append(self._table(tasks))
        parts.append(self._footer(run, tasks))
        if self._message:
            parts.append(Text(one_line(self._message), style="yellow"))
        return Group(*parts)

    def _table(self, tasks: list[Json]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
        table.add_column("wave", min_width=4, justify="right", style="dim", no_wrap=True)
        table.add_column("", width=1)
        table.add_column("task", no_wrap=True, max_width=16)
        table.add_column("what", no_wrap=True, ratio=1, overflow="ellipsis")
        table.add_column("time", width=9, justify="right", no_wrap=True)
        table.add_column("after", no_wrap=True, max_width=20, overflow="ellipsis", style="dim")
        waves = [list(members) for _, members in groupby(sorted(tasks, key=_wave), key=_wave)]
        if len(tasks) + len(waves) + _LINES_AROUND_ROWS <= self._console.height:
            for wave in waves:
                self._add(table, wave, shown=wave)
            return table
        for busy, stretch in groupby(waves, key=lambda wave: any(map(_is_running, wave))):
            if busy:
                for wave in stretch:
                    self._add(table, wave, shown=[task for task in wave if _is_running(task)][:_RUNNING_ROWS])
            else:
                self._add(table, [task for wave in stretch for task in wave], shown=[])
        return table

    def _add(self, table: Table, tasks: list[Json], *, shown: list[Json]) -> None:
        """The rows of one wave, or of a stretch of them: each task that is shown, and the rest counted."""
        first, last = tasks[0]["wave"], tasks[-1]["wave"]
        rows = [self._row(task) for task in shown]
        if len(shown) < len(tasks):
            keys = {task["key"] for task in shown}
            rows.append(
                ("", "", Text(_counted([task for task in tasks if task["key"] not in keys]), style="dim"), "", "")
            )
        for number, row in enumerate(rows):
            label = "" if number else str(first) if first == last else f"{first}–{last}"
            table.add_row(label, *row, end_section=number == len(rows) - 1)

    def _row(self, task: Json) -> tuple[RenderableType, ...]:
        mark, style = _MARKS.get(task["status"], ("·", ""))
        running = _is_running(task)
        return (
            self._spinner if running else Text(mark, style=style),
            Text(one_line(task["key"], 40), style=style),
            Text(one_line(task["description"], 200), style="" if running or task["status"] in _SETTLED else "dim"),
            Text(self._time_of(task), style=style),
            Text(one_line(", ".join(task["depends_on"]), 60)),
        )

    def _time_of(self, task: Json) -> str:
        if _is_running(task):
            return _seconds(time.monotonic() - self._running_since.get(task["key"], time.monotonic()))
        if task["status"] in _SETTLED:
            return _spent(task)
        return "waits" if task["status"] == "pending" else str(task["status"]).split("_", maxsplit=1)[0]

    def _footer(self, run: Json, tasks: list[Json]) -> RenderableType:
        status = run["status"]
        if status in FINISHED:
            return Text(f"{status} after {_spent(run, since='created_at')}  {_size(run)}", style="dim")
        if status == "planning":
            said = "A plan is being drawn"
        elif status in _STANDS_STILL:
            said = _what_it_waits_for(run)
        elif tasks and all(task["status"] in _SETTLED for task in tasks):
            said = "The answer is being written"
        else:
            said = status.replace("_", " ")
        if run.get("stop_requested"):
            said += f", {run['stop_requested']} asked for"
        truncated = "  (the first 500 tasks are shown)" if run.get("tasks_truncated") else ""
        return Text(f"{said} … {_seconds(time.monotonic() - self._began)}  {_size(run)}{truncated}", style="dim")


def _size(run: Json) -> str:
    tasks: list[Json] = run.get("tasks") or []
    if not tasks:
        return ""
    total, waves = run["progress"]["total"], max(task["wave"] for task in tasks)
    return f"{total} task{'s' * (total != 1)} in {waves} wave{'s' * (waves != 1)}"


def _what_it_waits_for(run: Json) -> str:
    return _STANDS_STILL[run["status"]].format(id=one_line(run["id"]))


def _wave(task: Json) -> int:
    return int(task["wave"])


def _is_running(task: Json) -> bool:
    return bool(task["status"] == "running")


def _counted(tasks: list[Json]) -> str:
    statuses = [task["status"] for task in tasks]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def _spent(entry: Json, since: str = "started_at") -> str:
    started, finished = entry.get(since), entry.get("finished_at")
    if not started or not finished:
        return ""
    return _seconds((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds())


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
