"""Where a server listens: names resolved, addresses judged, the socket bound."""

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass

from app.cli.terminal import leave
from app.domain.errors import ConfigurationError

PORT_TAKEN = 4
"""Exit code when the address cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """One resolved address; `loopback` when every address that the name stands for is."""

    family: socket.AddressFamily
    host: str
    port: int
    loopback: bool


def resolve(host: str, port: int) -> Address:
    """The address to bind, IPv4 first; raises `ConfigurationError` for a name that nobody knows."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigurationError(f"--host {host}: there is no such address.") from None
    hosts = [(family, str(address[0])) for family, _, _, _, address in found]
    family, first = min(hosts, key=lambda entry: entry[0] != socket.AF_INET)
    loopback = all(ipaddress.ip_address(host.partition("%")[0]).is_loopback for _, host in hosts)
    return Address(family=family, host=first, port=port, loopback=loopback)


def bind(address: Address) -> socket.socket:
    """A listening socket; leaves with exit code 4 when the address is taken or not ours to take."""
    try:
        return socket.create_server((address.host, address.port), family=address.family, backlog=2048)
    except OSError as error:
        shown = url(address.host, address.port).removeprefix("http://")
        if error.errno == errno.EADDRINUSE:
            leave(f"Port {address.port} is in use on {address.host}; choose another with --port.", PORT_TAKEN)
        leave(f"Cannot listen on {shown}: {os.strerror(error.errno or 0)}.", PORT_TAKEN)


def url(host: str, port: int) -> str:
    """The URL of a server on this address."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
