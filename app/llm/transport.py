"""The wire under the SDK's client: aiohttp's connections, at a third of the cost of the default ones, and bounded."""

import aiohttp
import httpx2
import yarl

_CONNECT_SECONDS = 10.0
_MAX_HEADER_BYTES = 64 * 1024  # of one line; gateways are fond of long ones


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Sends what httpx2's client sends, and reads each answer whole before it gives it back.

    At most `max_connections` at once, kept alive. An answer larger than `max_bytes`, or an encoded one, is refused
    while it arrives. Raises httpx2's errors. Cancelling the caller closes the connection.
    """

    def __init__(self, *, max_connections: int, max_bytes: int) -> None:
        self._max_connections = max_connections
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One exchange; redirects are answers."""
        if self._session is None:
            self._session = self._connected()  # needs the running loop
        try:
            return await self._exchange(self._session, request)
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(f"No connection within {_CONNECT_SECONDS:g} s.", request=request) from error
        except aiohttp.InvalidURL as error:
            raise httpx2.UnsupportedProtocol(str(error), request=request) from error
        except aiohttp.ClientConnectorError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise httpx2.NetworkError(f"{type(error).__name__}: {error}".rstrip(": "), request=request) from error

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _exchange(self, session: aiohttp.ClientSession, request: httpx2.Request) -> httpx2.Response:
        answer = await session.request(
            request.method,
            yarl.URL(str(request.url), encoded=True),
            headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
            data=request.content,
            allow_redirects=False,
        )
        try:
            body = await self._body(answer, request)
        except BaseException:
            answer.close()  # what is left of this answer must not be read as the next one's
            raise
        answer.release()
        return httpx2.Response(answer.status, headers=_headers(answer), content=body, request=request)

    async def _body(self, answer: aiohttp.ClientResponse, request: httpx2.Request) -> bytes:
        if answer.status == 101:
            raise httpx2.RemoteProtocolError("The endpoint changes to another protocol, unasked.", request=request)
        encoding = answer.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise httpx2.DecodingError(f"The body is encoded, unasked: {encoding[:40]}.", request=request)
        chunks: list[bytes] = []
        size = 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > self._max_bytes:
                raise httpx2.ReadError(f"The answer is larger than {self._max_bytes} bytes.", request=request)
            chunks.append(chunk)
        return b"".join(chunks)

    def _connected(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, ssl=httpx2.create_ssl_context()),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
        )


def _headers(answer: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    # JSON is UTF-8; a charset that the endpoint names could be any of Python's codecs.
    media_type = answer.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    kept = [
        (name, value)
        for name, value in answer.raw_headers
        if name.lower() not in (b"content-type", b"content-length", b"transfer-encoding")
    ]
    return [*kept, (b"content-type", media_type.encode("latin-1", "replace"))]
