"""Which URLs and which addresses may be asked for by those who are not trusted: models, and pages that redirect."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Self
from urllib.parse import urljoin

import httpx

from app.domain.errors import ConfigurationError

WEB_PORTS = (80, 443)
LONGEST_URL = 2000
"""Characters; what browsers and servers of all kinds still take."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[^]]*]|[^\[\]:@%/?#]+)(?::(?P<port>[0-9]{1,5}))?(?P<rest>[/?#].*)?", re.I
)
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
# What resolvers take for a number: `2130706433`, `0x7f000001` and `127.1` are all 127.0.0.1 to them.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Names that lead inside by convention, whatever a resolver says: this machine, its network, its cloud.
_INSIDE = (
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "home.arpa",
    "metadata",
    "metadata.goog",
    "instance-data",
)

# Beyond what the standard library calls not global. RFC 6890's registries and their later entries, whole blocks.
_REFUSED = tuple(
    ip_network(block)
    for block in (
        "192.0.0.0/24",  # protocol assignments; a cloud keeps its metadata here
        "192.88.99.0/24",  # 6to4 relays
        "168.63.129.16/32",  # Azure's inside, at a public address
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: any IPv4 address, inside
        "3fff::/20",  # documentation
    )
)
# The only block from which public IPv6 addresses are given out. Outside are IPv4-mapped and -compatible addresses,
# NAT64, ULA, link-local, site-local and multicast.
_UNICAST6 = ip_network("2000::/3")


class AddressRefused(httpx.RequestError):
    """A URL, or the address behind it, that is not for those who ask. The message shows no resolved address."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is plain unicast on the internet; what could carry another address inside is not."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv6Address) and (address.scope_id is not None or address not in _UNICAST6):
        return False
    return not any(address in block for block in _REFUSED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a request goes: its URL in canonical form, its host in ASCII, its port. `listed` by the operator."""

    url: httpx.URL
    host: str
    port: int
    listed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class EgressRules:
    """The operator's word on where requests may go.

    `private` are exact pairs of a URL's host and port: for these any port and any address will do. Everything else has
    to be public, at one of `ports`.
    """

    ports: frozenset[int]
    private: frozenset[tuple[str, int]]

    @classmethod
    def of(cls, *, ports: Iterable[int] = WEB_PORTS, private: Iterable[str] = ()) -> Self:
        """From settings: `private` as `host:port`. Raises `ConfigurationError`."""
        return cls(ports=frozenset(ports), private=frozenset(_pair(text) for text in private))

    def place(self, text: str, *, seen_from: httpx.URL | None = None) -> Place:
        """Reads a URL, in a redirect relative to `seen_from`. Raises `AddressRefused`; nothing is looked up."""
        text = text.strip()
        if len(text) > LONGEST_URL:
            raise AddressRefused(f"The URL is longer than {LONGEST_URL} characters.")
        if "\\" in text or not text.isprintable():
            raise AddressRefused("The URL holds control characters or backslashes: percent-encode them.")
        try:
            joined = text if seen_from is None else urljoin(str(seen_from), text)
            read = _URL.fullmatch(joined)
            if read is None:
                raise AddressRefused("Write the URL as http://host/path or https://host/path, without a user name.")
            host = _canonical(read["host"])
            bracketed = f"[{host}]" if ":" in host else host
            url = httpx.URL(f"{read['scheme']}://{bracketed}:{read['port'] or ''}{read['rest'] or ''}")
        except (httpx.InvalidURL, ValueError) as error:
            raise AddressRefused("This is not a URL.") from error
        port = (443 if url.scheme == "https" else 80) if url.port is None else url.port
        listed = (host, port) in self.private
        if not listed:
            self._check(host, port)
        return Place(url=url.copy_with(fragment=None), host=host, port=port, listed=listed)

    def _check(self, host: str, port: int) -> None:
        if port not in self.ports:
            allowed = ", ".join(str(number) for number in sorted(self.ports))
            raise AddressRefused(f"Port {port} is not open to this tool; these are: {allowed}.")
        if any(host == name or host.endswith("." + name) for name in _INSIDE):
            raise AddressRefused(f"{host} is not a public address.")


def _pair(text: str) -> tuple[str, int]:
    host, _, port = text.strip().rpartition(":")
    wrong = ConfigurationError(f"{text!r} is not a pair host:port, such as intranet.example:443")
    if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise wrong
    try:
        return _canonical(host), int(port)
    except (AddressRefused, httpx.InvalidURL, ValueError) as error:
        raise wrong from error


def _canonical(host: str) -> str:
    """The one spelling of a host: ASCII, lower case, no final dot; an address as `ipaddress` writes it."""
    if host.startswith("["):
        if "%" in host:
            raise AddressRefused("Addresses with a zone are not public.")
        return str(IPv6Address(host[1:-1]))
    folded = unicodedata.normalize("NFKC", host).replace("\N{IDEOGRAPHIC FULL STOP}", ".").lower()
    name = httpx.URL(scheme="http", host=folded).raw_host.decode("ascii").removesuffix(".")
    if _NAME.fullmatch(name) is None:
        raise AddressRefused("The URL's host is not a valid name.")
    if _NUMBER.fullmatch(name.rpartition(".")[2]) is None:
        return name
    try:
        return str(IPv4Address(name))
    except ValueError as error:
        raise AddressRefused("Write an address as four plain decimal numbers.") from error


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that the host already is, or None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None
