"""The tool `http_get`: one page of the public web as text, at most so large, within so many seconds."""

import asyncio
import ssl
import zlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import httpx

from app import __version__
from app.domain.errors import ToolRetry
from app.domain.status import SideEffects
from app.domain.text import shortened, storable
from app.tls import trusted
from app.tools.addresses import LONGEST_URL, WEB_PORTS, AddressRefused, EgressRules
from app.tools.egress import GuardedTransport, guarded_client
from app.tools.pages import is_text, media_type, text_of
from app.tools.tool import ToolContext, ToolSpec

_SPEC: Final = ToolSpec(
    name="http_get",
    description=(
        "Fetch a page of the public web with HTTP GET and read it as text. HTML comes as readable text with its links; "
        "JSON, XML and plain text come as they are. Long pages are cut."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "url": {
                "type": "string",
                "minLength": 1,
                "maxLength": LONGEST_URL,
                "description": "The whole URL, with http:// or https://.",
            }
        },
        "required": ["url"],
        "additionalProperties": False,
    },
    side_effects=SideEffects.NONE,
)
_HEADERS: Final = {
    "User-Agent": f"Planwave/{__version__} (+http_get)",
    "Accept": "text/html, application/xhtml+xml, application/json, text/*;q=0.9, application/xml;q=0.8",
    "Accept-Encoding": "gzip",
    "Connection": "close",
}
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_NO_BODY: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT)
_ERROR_CHARACTERS: Final = 500


class HttpGet:
    """`http_get`. It changes nothing, so every error is a `ToolRetry` that has not acted.

    `allowed_private` are the operator's `host:port` pairs that need not be public. `max_bytes` bounds the body both as
    sent and as unpacked; `timeout_seconds` the whole call, redirects and reading included.
    """

    def __init__(
        self,
        *,
        allowed_private: Sequence[str] = (),
        ports: Sequence[int] = WEB_PORTS,
        max_bytes: int = 2 * 1024 * 1024,
        timeout_seconds: float = 20.0,
        max_redirects: int = 3,
        max_characters: int = 50_000,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = EgressRules.of(ports=ports, private=allowed_private)
        self._tls = tls or trusted()
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._max_redirects = max_redirects
        self._max_characters = max_characters

    @property
    def spec(self) -> ToolSpec:
        """What it says of itself."""
        return _SPEC

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """The page, under its final URL, status and content type. Raises `ToolRetry`."""
        try:
            # A client for each call: where a cancel breaks into the closing of an answer, the connection stays in the
            # client's pool, and is closed with that.
            transport = GuardedTransport(self._rules, tls=self._tls)
            async with (
                asyncio.timeout(self._timeout_seconds),
                guarded_client(transport, timeout_seconds=self._timeout_seconds) as client,
            ):
                return await self._fetch(client, arguments["url"])
        except (TimeoutError, httpx.TimeoutException):
            raise _retry(f"No whole answer within {self._timeout_seconds:g} seconds.", "timeout") from None
        except AddressRefused as error:
            raise _retry(str(error), "address_refused") from None
        except (httpx.HTTPError, httpx.InvalidURL):
            # Its own message may show addresses that were resolved.
            raise _retry("The server cannot be reached, or does not speak HTTP.", "unreachable") from None

    async def _fetch(self, client: httpx.AsyncClient, text: str) -> str:
        url = self._rules.place(text).url
        for _ in range(self._max_redirects + 1):
            # A request of its own for each hop: nothing is carried over from the one before.
            async with client.stream("GET", url, headers=_HEADERS) as response:
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    return await self._read(response, url)
            url = self._rules.place(location, seen_from=url).url
        raise _retry(f"It redirects more than {self._max_redirects} times.", "too_many_redirects")

    async def _read(self, response: httpx.Response, url: httpx.URL) -> str:
        kind = media_type(response.headers.get("content-type", ""))
        status = _status(response.status_code)
        failed = response.status_code >= HTTPStatus.BAD_REQUEST
        if response.status_code in _NO_BODY:
            return f"URL: {url}\nStatus: {status}\n\n(The answer has no body.)"
        if not is_text(kind):
            if failed:
                raise _retry(f"{url} answered {status}.", "http_status")
            if not response.headers.get("content-type", "").strip():
                raise _retry(f"{url} does not say whether it is text (no Content-Type), so it is not read.", "not_text")
            raise _retry(f"{url} is {kind.name}, not text.", "not_text")
        body, cut = await _body(response, self._max_bytes)
        limit = _ERROR_CHARACTERS if failed else self._max_characters
        # Off the loop: a large page takes a while, and other tasks go on meanwhile.
        text = storable(await asyncio.to_thread(text_of, body, kind, url=str(url), limit=limit + 1))
        if failed:
            raise _retry(f"{url} answered {status}: {shortened(text, limit)}", "http_status")
        notes = [f"URL: {url}", f"Status: {status}", f"Content type: {kind.name}"]
        if cut:
            notes.append(f"Note: the body was cut; what follows comes of its first {len(body)} bytes.")
        if len(text) > limit:
            notes.append(f"Note: the text was cut after {limit} characters.")
        return "\n".join(notes) + "\n\n" + text[:limit]


async def _body(response: httpx.Response, limit: int) -> tuple[bytes, bool]:
    """The unpacked body up to `limit` bytes, and whether that is not all of it.

    Unpacked here, as httpx would unpack a chunk whole, and several times over, before anybody could count.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("gzip", "x-gzip", "identity", ""):
        raise _retry("The body is packed in a way that was not asked for.", "not_text")
    unpack = zlib.decompressobj(wbits=31) if encoding.endswith("gzip") else None
    body = bytearray()
    received = 0
    async for chunk in response.aiter_raw():
        received += len(chunk)
        try:
            # One byte more than fits tells a body that is cut from one that fits exactly.
            body += chunk if unpack is None else unpack.decompress(chunk, limit + 1 - len(body))
        except zlib.error:
            raise _retry("The body cannot be unpacked.", "not_text") from None
        if len(body) > limit or received > limit:
            return bytes(body[:limit]), True
    # Of several packed members, one after the other, the first is taken.
    return bytes(body), unpack is not None and received > 0 and (not unpack.eof or bool(unpack.unused_data))


def _status(code: int) -> str:
    """With our own words for it: the server's might say anything."""
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _retry(message: str, kind: str) -> ToolRetry:
    return ToolRetry(message, kind=kind, may_have_acted=False)
