"""The HTTP client for URLs of those who are not trusted: every request is judged at the address it connects to."""

import asyncio
import socket
import ssl
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv6Address, ip_address

import httpx

from app.tls import trusted
from app.tools.addresses import AddressRefused, EgressRules, Place, is_public, literal
from app.tools.threads import Threads

_LOOKUPS = Threads(name="http-get-lookup", bound=8)
"""Not the loop's own few: names that are slow to be found, on purpose perhaps, would hold up the model's as well."""


class GuardedTransport(httpx.AsyncBaseTransport):
    """Looks a name up once, judges every answer, and connects to the very addresses it judged.

    Nobody looks the name up again, so an answer that changes (DNS rebinding) changes nothing. The Host header and the
    TLS name stay the URL's. Connections are not kept: one that was opened for a host never serves another.
    """

    def __init__(self, rules: EgressRules, *, tls: ssl.SSLContext | None = None) -> None:
        self._rules = rules
        self._inner = httpx.AsyncHTTPTransport(
            verify=tls or trusted(),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it. Raises `AddressRefused` before anything is sent to, or connected with, an address inside."""
        place = self._rules.place(str(request.url))
        addresses = await _addresses(place)
        for address in addresses[:-1]:
            try:
                return await self._inner.handle_async_request(_towards(address, place, request))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # nothing was sent: the next address may be in better health
        return await self._inner.handle_async_request(_towards(addresses[-1], place, request))

    async def aclose(self) -> None:
        """Close what is open."""
        await self._inner.aclose()


def guarded_client(transport: GuardedTransport, *, timeout_seconds: float) -> httpx.AsyncClient:
    """A client that knows no proxies, keeps no cookies and follows no redirects. Each wait has its own time limit."""
    return httpx.AsyncClient(
        transport=transport,
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        timeout=httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
    )


async def _addresses(place: Place) -> list[IPv4Address | IPv6Address]:
    """Where the place is; one answer inside spoils them all, as somebody has mixed them on purpose."""
    written = literal(place.host)
    found = [written] if written else await _look_up(place)
    if not place.listed and not all(is_public(address) for address in found):
        raise AddressRefused(f"{place.host} is not a public address.")
    return found


async def _look_up(place: Place) -> list[IPv4Address | IPv6Address]:
    try:
        ask = partial(socket.getaddrinfo, place.host, place.port, type=socket.SOCK_STREAM)
        answers = await asyncio.wrap_future(_LOOKUPS.submit(ask))
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError("The name has no address.") from error
    found = dict.fromkeys(ip_address(sockaddr[0]) for *_, sockaddr in answers)
    if not found:
        raise httpx.ConnectError("The name has no address.")
    return list(found)


def _towards(address: IPv4Address | IPv6Address, place: Place, request: httpx.Request) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": place.host},
    )
