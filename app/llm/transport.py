"""The wire to a model's endpoint: aiohttp's connections, each exchange read whole and bounded."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.request import getproxies_environment, proxy_bypass

import aiohttp
import yarl

from app.domain.errors import ConfigurationError
from app.tls import trusted

_CONNECT_SECONDS = 10.0
_NO_PROXY_ADDRESS = "The proxy that the environment names is not an address."
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

    def __init__(self, *, max_connections: int, max_bytes: int, proxy: yarl.URL | None = None) -> None:
        self._max_connections = max_connections
        self._max_bytes = max_bytes
        # Apart from each other: errors show the address.
        self._proxy = None if proxy is None else proxy.with_user(None)
        self._proxy_headers: dict[str, str] = {}
        if proxy is not None and proxy.user is not None:
            self._proxy_headers["Proxy-Authorization"] = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: yarl.URL, *, headers: Mapping[str, str], body: bytes) -> Response:
        """One exchange, as long as it takes. Cancelling the caller closes the connection.

        Raises `TransportError`, also for an answer of more than `max_bytes` (while it arrives) and for an encoded one.
        """
        if self._session is None:
            self._session = self._connected()  # needs the running loop
        try:
            if url.scheme == "http":
                headers = {**headers, **self._proxy_headers}  # without a tunnel, the proxy reads the request itself
            answer = await self._session.post(
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
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


def proxy_for(url: yarl.URL) -> yarl.URL | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY mean for this address; none for loopback.

    Raises `ConfigurationError` for one that is not spoken to over HTTP.
    """
    host, proxies = url.host or "", getproxies_environment()
    named = (proxies.get(url.scheme) or proxies.get("all") or "").strip()
    if not named or _is_loopback(host) or proxy_bypass(host) or proxy_bypass(f"{host}:{url.port}"):
        return None
    try:
        proxy = yarl.URL(named if "://" in named else f"http://{named}")
    except ValueError:
        raise ConfigurationError(_NO_PROXY_ADDRESS) from None
    if proxy.scheme not in ("http", "https"):
        raise ConfigurationError(f"Model calls go through proxies of http and https, and not of {proxy.scheme}.")
    if not proxy.host or ":" in (proxy.user or ""):
        raise ConfigurationError(_NO_PROXY_ADDRESS)
    return proxy


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
