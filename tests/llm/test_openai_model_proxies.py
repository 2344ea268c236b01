"""The openai model through the proxy that the environment names."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import yarl

from app.domain.errors import ConfigurationError, TransportFault
from app.llm.transport import proxy_for
from tests.endpoint import a_request, model_at

ANSWER = json.dumps({"choices": [{"message": {"content": "by proxy"}, "finish_reason": "stop"}]}).encode()


@dataclass
class Proxy:
    """Answers for every address itself, and connects nobody."""

    port: int = 0
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """The first line and the headers of every request."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        self.asked.append((head[0], headers))
        if head[0].startswith("CONNECT"):
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        else:
            await reader.readexactly(int(headers["content-length"]))
            opening = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
            writer.write(opening.encode() + ANSWER)
        await writer.drain()
        writer.close()


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    made = Proxy()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://somebody:s3cret@127.0.0.1:{made.port}")
        yield made


async def test_a_call_goes_through_the_proxy_that_the_environment_names(proxy: Proxy) -> None:
    async with model_at("http://model.invalid/v1") as model:
        assert (await model.complete(a_request())).content == "by proxy"
    ((line, headers),) = proxy.asked
    assert line == "POST http://model.invalid/v1/chat/completions HTTP/1.1"
    assert headers["host"] == "model.invalid"
    assert headers["proxy-authorization"].startswith("Basic ")


async def test_what_is_encrypted_goes_through_a_tunnel(proxy: Proxy) -> None:
    async with model_at("https://model.invalid/v1") as model:
        with pytest.raises(TransportFault) as raised:
            await model.complete(a_request())
    ((line, headers),) = proxy.asked
    assert line == "CONNECT model.invalid:443 HTTP/1.1"
    assert "authorization" not in headers, "the endpoint's key is none of the proxy's business"
    assert "407" in str(raised.value)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "environment", "proxy"),
    [
        ("https://api.openai.com/v1", {}, None),
        ("https://api.openai.com/v1", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://api.openai.com/v1", {"https_proxy": "p:3128"}, "http://p:3128"),
        ("https://api.openai.com/v1", {"ALL_PROXY": "https://p"}, "https://p"),
        ("https://api.openai.com/v1", {"HTTP_PROXY": "http://p"}, None),
        ("http://model.internal/v1", {"HTTP_PROXY": "http://p"}, "http://p"),
        ("http://model.internal/v1", {"HTTP_PROXY": "http://p", "NO_PROXY": ".internal"}, None),
        ("http://model.internal/v1", {"HTTP_PROXY": "http://p", "NO_PROXY": "*"}, None),
        ("http://model.internal/v1", {"HTTP_PROXY": "http://p", "NO_PROXY": "other.internal"}, "http://p"),
        ("http://model.internal:8080/v1", {"HTTP_PROXY": "http://p", "NO_PROXY": "model.internal:8080"}, None),
        ("http://model.internal:8081/v1", {"HTTP_PROXY": "http://p", "NO_PROXY": "model.internal:8080"}, "http://p"),
        ("http://model.internal/v1", {"HTTP_PROXY": " "}, None),
        ("http://127.0.0.1:11434/v1", {"HTTP_PROXY": "http://p"}, None),
        ("http://[::1]:11434/v1", {"ALL_PROXY": "http://p"}, None),
        ("http://localhost:11434/v1", {"HTTP_PROXY": "http://p"}, None),
    ],
)
def test_the_environment_says_which(
    url: str, environment: dict[str, str], proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(yarl.URL(url)) == (None if proxy is None else yarl.URL(proxy))


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://somebody:s3cret@p:1080", "socks5"),
        ("http://s3cret@p:many", "address"),
        ("http://", "address"),
        ("http://s3c%3Aret:s3cret@p", "address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_at_the_start(
    proxy: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigurationError, match=said) as raised:
        proxy_for(yarl.URL("https://api.openai.com/v1"))
    assert "s3cret" not in str(raised.value)
