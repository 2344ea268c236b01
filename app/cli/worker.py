"""`planwave worker`: drives runs until a signal, then drains."""

import asyncio
from collections.abc import Callable

import typer

from app.bootstrap import run_worker
from app.cli import database
from app.cli.collector import settle
from app.cli.configuration import answering_model, configure_logs, load_settings
from app.cli.signals import Signals
from app.settings import Settings


def work() -> None:
    """Work until SIGTERM or SIGINT; a second signal leaves at once, and what was in flight is taken over later."""
    signals = Signals()
    settings = load_settings()
    configure_logs(settings)
    database.prepare(settings)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_until_signalled(settings, signals))


async def _until_signalled(settings: Settings, signals: Signals) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals.drain_on_first(lambda: loop.call_soon_threadsafe(stop.set), grace_seconds=settings.drain_seconds)

    def greet() -> None:
        settle()
        typer.echo(f"The worker looks for runs. Answers come from: {answering_model(settings)}.")

    await run_worker(settings, stop, greet)
    typer.echo("The worker has drained.")
    signals.drained()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:  # no wheel for this platform
        return asyncio.new_event_loop
    return uvloop.new_event_loop
