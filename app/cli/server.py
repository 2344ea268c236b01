"""Runs an ASGI application on a bound socket until a signal, and says where it is: `planwave serve` and `model`."""

import asyncio
import socket
from typing import TYPE_CHECKING

import typer
import uvicorn

from app.cli.collector import settle
from app.cli.configuration import answering_model, configure_logs, load_settings
from app.cli.listen import bind, resolve, url
from app.cli.signals import Signals
from app.cli.terminal import leave

# What is slow to import waits inside the functions: a refusal or a port in use should not.
if TYPE_CHECKING:
    from fastapi import FastAPI

_IDLE_SECONDS = 75
"""For connections that clients keep: longer than they do, or a request meets a connection that is being closed."""
_REQUEST_SECONDS = 2
"""For requests that are still being answered when the worker has drained; those that wait are answered before."""


def serve(*, host: str, port: int, with_worker: bool, allow_unauthenticated: bool) -> None:
    """`planwave serve`: exit 0 after SIGTERM or SIGINT, 2 for settings, 3 for the database, 4 for the port."""
    signals = Signals()
    settings = load_settings()
    address = resolve(host, port)
    if not address.loopback and not allow_unauthenticated:
        leave(
            f"{host} can be reached from other machines, and this service asks nobody for a key. Leave --host away, "
            "or say --allow-unauthenticated when something in front of it decides who comes in.",
            2,
        )
    listening = bind(address)
    configure_logs(settings)

    from app.cli import database  # noqa: PLC0415
    from app.main import create_app  # noqa: PLC0415

    database.prepare(settings)
    where = _url_of(listening)
    greeting = f"Planwave is at {where} (API pages at {where}/docs). Answers come from: {answering_model(settings)}."
    if not address.loopback:
        greeting += "\nAnybody who reaches this address can use it: nobody is asked for a key."
    if not with_worker:
        greeting += "\nNo worker runs in this process: start one with planwave worker."
    app = create_app(settings, with_worker=with_worker)
    _run(app, listening, greeting, signals, grace_seconds=settings.drain_seconds)


def serve_model(*, host: str, port: int, seed: int, delay_seconds: tuple[float, float]) -> None:
    """`planwave model`: the offline model for any client of the Chat Completions API."""
    signals = Signals()
    listening = bind(resolve(host, port))
    configure_logs(load_settings())

    from app.llm.offline import OfflineModel  # noqa: PLC0415
    from app.llm.offline_server import create_model_app  # noqa: PLC0415

    greeting = f"The offline model is at {_url_of(listening)}/v1; any key will do."
    app = create_model_app(OfflineModel(seed=seed, delay_seconds=delay_seconds))
    _run(app, listening, greeting, signals, grace_seconds=0)


class _Server(uvicorn.Server):
    """Goes on answering until the application has drained: whoever asks hears that it is not ready any more."""

    def __init__(self, config: uvicorn.Config, app: "FastAPI", greeting: str, signals: Signals) -> None:
        super().__init__(config)
        self._app = app
        self._greeting = greeting
        self._signals = signals
        self._loop: asyncio.AbstractEventLoop | None = None

    def drain(self) -> None:
        """End in an orderly way; from any thread, at any time."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin_drain)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets)
        if self.started and not self.lifespan.should_exit:
            self._signals.drained()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        settle()
        if self.started:
            typer.echo(self._greeting)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) and getattr(self._app.state, "is_drained", _at_once)()

    def _begin_drain(self) -> None:
        getattr(self._app.state, "begin_drain", _at_once)()


def _at_once() -> bool:
    return True


def _run(app: "FastAPI", listening: socket.socket, greeting: str, signals: Signals, *, grace_seconds: float) -> None:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_REQUEST_SECONDS,
    )
    server = _Server(config, app, greeting, signals)
    signals.drain_on_first(server.drain, grace_seconds=grace_seconds)
    try:
        server.run(sockets=[listening])
    except SystemExit:  # how uvicorn says that the lifespan failed; its log says why
        leave("The service could not start.", 1)
    if server.lifespan.should_exit:
        leave("The service broke.", 1)


def _url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return url(host, port)
