"""The wire to a model's endpoint: aiohttp's connections, each exchange read whole and bounded."""

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import yarl

from app.tls import trusted

_CONNECT_SECONDS = 10.0
_MAX_HEADER_BYTES = 64 * 1024  # of one line; gateways are fond of long ones


class TransportError(Exception):
    """The exchange came to nothing; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What came back, whatever its status; header names in any case find their values."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """At most `max_connections` at once, kept alive and used again. Redirects are not followed."""

    def __init__(self, *, max_connections: int, max_bytes: int) -> None:
        self._max_connections = max_connections
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Response:
        """One exchange, as long as it takes. Cancelling the caller closes the connection.

        Raises `TransportError`, also for an answer of more than `max_bytes` (while it arrives) and for an encoded one.
        """
        if self._session is None:
            self._session = self._connected()  # needs the running loop
        try:
            answer = await self._session.post(
                yarl.URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
            )
            try:
                response = Response(status=answer.status, headers=answer.headers, body=await self._body(answer))
            except BaseException:
                answer.close()  # what is left of this answer must not be read as the next one's
                raise
        except TimeoutError:
            raise TransportError(f"no connection within {_CONNECT_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransportError(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        answer.release()
        return response

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        if answer.status == 101:
            raise TransportError("the endpoint changes to another protocol, unasked")
        encoding = answer.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise TransportError(f"the body is encoded, unasked: {encoding[:40]}")
        chunks: list[bytes] = []
        size = 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > self._max_bytes:
                raise TransportError(f"the answer is larger than {self._max_bytes} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    def _connected(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, ssl=trusted()),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )
