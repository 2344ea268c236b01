"""A small web site on this machine that answers with exactly the bytes it is told, and counts who comes."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

EVERYWHERE = ("0.0.0.0", "::")
"""All addresses of this machine."""

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(
    body: bytes | str = b"", *, status: str = "200 OK", kind: str | None = "text/plain; charset=utf-8", **headers: str
) -> bytes:
    """A whole HTTP/1.1 answer; `content_encoding="gzip"` becomes a header."""
    raw = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(raw)}"]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + raw


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(status=status, location=location)


@dataclass
class LocalSite:
    """`pages` are answers by path. `connections` counts everybody who connected; `requests` are their heads."""

    pages: dict[str, Answer] = field(default_factory=dict)
    connections: int = 0
    requests: list[tuple[int, str]] = field(default_factory=list)
    port: int = 0

    @property
    def pair(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str = "/", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def headers(self, number: int = -1) -> dict[str, str]:
        lines = self.requests[number][1].split("\r\n")[1:]
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.requests.append((connection, head))
                found = self.pages.get(head.split(" ")[1], answer(status="404 Not Found", body="no such page"))
                if isinstance(found, bytes):
                    writer.write(found)
                    await writer.drain()
                else:
                    await found(writer)
                    break
        writer.close()


@contextlib.asynccontextmanager
async def local_site(
    pages: dict[str, Answer] | None = None,
    *,
    hosts: Sequence[str] = ("127.0.0.1",),
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[LocalSite]:
    """A running site, on a port of the system's choice unless one is named."""
    site = LocalSite(pages=dict(pages or {}), port=port)
    with contextlib.ExitStack() as running:
        for host in hosts:
            try:
                server = await asyncio.start_server(site.serve, host, site.port, ssl=tls)
            except OSError:
                if host != "::":  # a machine without IPv6
                    raise
                continue
            running.callback(server.close)
            site.port = server.sockets[0].getsockname()[1]
        yield site
