"""The openai model over real HTTP: connections that fail, stall, are cut, shared and used again."""

import asyncio
import socket
from typing import Any

import pytest

from app.domain.errors import ConfigurationError, TransportFault
from tests.endpoint import PATIENCE_SECONDS, Endpoint, a_request, model_at
from tests.scripted_model import Call, Reply, ScriptedModel, error, hang, reset, text, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")


# Connections.


async def test_a_refused_connection_is_a_transport_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        async with model_at(f"http://127.0.0.1:{taken.getsockname()[1]}/v1") as model:
            with pytest.raises(TransportFault) as raised:
                await model.complete(a_request())
    assert raised.value.kind == "connection"


async def test_an_address_that_leads_nowhere_is_a_transport_fault() -> None:
    async with model_at("http://planwave.invalid/v1") as model:
        with pytest.raises(TransportFault) as raised:
            await model.complete(a_request())
    assert raised.value.kind == "connection"


@pytest.mark.parametrize(
    "url",
    [
        *["no-scheme/v1", "ftp://127.0.0.1/v1", "http:///v1", "http://host:port/v1", "http://[::1/v1"],
        *["http://h:99999/v1", "http://u:p@host/v1", "http://a b/v1", "http://host/v1?api=1"],
    ],
)
async def test_what_is_no_address_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PLANWAVE_LLM_BASE_URL"):
        async with model_at(url):
            pass


@pytest.mark.parametrize(
    "reply",
    [
        reset(),
        text("x").cut(body_bytes=0),
        text("x").cut(body_bytes=30),
        wire(b""),
        wire(b"HTTP/1.1 200"),
        wire(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"),
        wire(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        wire(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"),
        wire(b"HTTP/9.9 777 What\r\n\r\n"),
        wire(b"SSH-2.0-OpenSSH_9.6\r\n"),
        wire(b"\x00\x01\x02\x03" * 100),
        wire(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 500_000 + b"\r\n\r\n"),
        wire(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
    ],
)
async def test_an_exchange_that_breaks_off_is_a_transport_fault(endpoint: Endpoint, reply: Reply) -> None:
    fault = await endpoint.fault(reply)
    assert isinstance(fault, TransportFault)
    assert (await endpoint.ask(text("fine"))).content == "fine"


@pytest.mark.parametrize(
    "reply",
    [
        hang(),
        text("x").dripping(1.0),
        Reply(stream=b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{").after(0.0),
        Reply(stream=b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
async def test_the_time_bounds_the_whole_call_however_it_stalls(endpoint: Endpoint, reply: Reply) -> None:
    await endpoint.ask(text("the connection stands"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        fault = await endpoint.fault(reply, timeout_seconds=0.5)
    assert (type(fault), fault.kind, fault.message) == (TransportFault, "timeout", "No complete answer within 0.5 s.")


@pytest.mark.parametrize("reply", [hang(), text("x").dripping(1.0)])
async def test_a_call_that_ran_out_of_time_closes_its_connection(endpoint: Endpoint, reply: Reply) -> None:
    await endpoint.ask(text("the connection stands"))
    await endpoint.fault(reply, timeout_seconds=0.5)
    await endpoint.server.until(lambda: [call.disconnected for call in endpoint.server.calls] == [True])


async def test_cancelling_the_caller_closes_the_connection(endpoint: Endpoint) -> None:
    endpoint.answers(hang())
    asking = asyncio.create_task(endpoint.ask())
    await endpoint.server.until(lambda: len(endpoint.server.calls) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await endpoint.server.until(lambda: endpoint.server.calls[0].disconnected)


class CountingModel(ScriptedModel):
    """Knows how many connections were opened."""

    opened_count = 0

    def opened(self, connection: Any) -> None:
        self.opened_count += 1
        super().opened(connection)


async def test_a_connection_is_used_again_and_again() -> None:
    async with CountingModel(lambda _: text("x")) as server, model_at(server.url) as model:
        for _ in range(5):
            await model.complete(a_request())
        assert (len(server.calls), server.opened_count) == (5, 1)


async def test_a_connection_outlives_an_error() -> None:
    async with CountingModel(lambda _: error(503)) as server, model_at(server.url) as model:
        for _ in range(3):
            with pytest.raises(TransportFault):
                await model.complete(a_request())
        assert (len(server.calls), server.opened_count) == (3, 1)


async def test_no_more_connections_are_open_than_allowed() -> None:
    full, in_flight, most = asyncio.Event(), 0, 0

    async def answer(_: Call) -> Reply:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        if in_flight == 3:
            full.set()
        await full.wait()
        in_flight -= 1
        return text("x")

    async with CountingModel(answer) as server, model_at(server.url, max_concurrency=3) as model:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(model.complete(a_request()) for _ in range(12)))
        assert (most, server.opened_count) == (3, 3)


@pytest.mark.parametrize("cancels", [1, 2, 5])
async def test_cancelled_calls_leave_their_connections_to_others(cancels: int) -> None:
    async with ScriptedModel(lambda _: hang()) as server, model_at(server.url, max_concurrency=2) as model:
        for _ in range(3):
            server.begin(lambda _: hang())
            asking = [asyncio.create_task(model.complete(a_request())) for _ in range(4)]
            await server.until(lambda: len(server.calls) == 2)
            for _ in range(cancels):
                for task in asking:
                    task.cancel()
                await asyncio.sleep(0)
            await asyncio.gather(*asking, return_exceptions=True)
        server.begin(lambda _: text("fine"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            answers = await asyncio.gather(*(model.complete(a_request()) for _ in range(4)))
        assert [answer.content for answer in answers] == ["fine"] * 4
