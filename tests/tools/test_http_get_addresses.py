"""Nothing inside is reached: disguised addresses, names that lead inside, names that change, redirects, pools."""

import asyncio
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from app.domain.errors import ConfigurationError, ToolRetry
from app.tools.addresses import EgressRules, is_public
from app.tools.egress import GuardedTransport, guarded_client
from app.tools.http_get import HttpGet
from app.tools.tool import ToolContext
from tests.local_site import EVERYWHERE, LocalSite, answer, local_site, redirect
from tests.polling import until

CONTEXT = ToolContext(run_id="r", task_key="t", idempotency_key="k")
PUBLIC = "93.184.215.14"
Resolver = Callable[[str, int], Sequence[str]]


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves this machine, whatever the guard lets through."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        assert ip_address(address[0]).is_loopback, "this would have left the machine"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
async def canary() -> AsyncIterator[LocalSite]:
    """It hears everybody who connects to this machine, at any of its addresses."""
    async with local_site({"/": answer("the inside")}, hosts=EVERYWHERE) as site:
        yield site


def resolve_with(monkeypatch: pytest.MonkeyPatch, resolver: Resolver) -> Counter[tuple[str, str]]:
    """Puts `resolver` where every connection of this process resolves; counts names by type and text."""
    asked: Counter[tuple[str, str]] = Counter()

    def getaddrinfo(host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        name = host.decode("ascii") if isinstance(host, bytes) else str(host)
        asked[type(host).__name__, name] += 1
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, int(port or 0), 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port or 0)))
            for address in resolver(name, sum(asked.values()))
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def tool(*sites: LocalSite, **options: Any) -> HttpGet:
    """With the sites' ports open, as if they were web servers' ports: what is refused is refused by address."""
    return HttpGet(ports=(80, 443, *(site.port for site in sites)), timeout_seconds=10, **options)


async def get(fetcher: HttpGet, url: str) -> str:
    return await fetcher.call({"url": url}, CONTEXT)


DISGUISES = [
    # plain
    "http://127.0.0.1:{port}/",
    "http://127.0.0.2:{port}/",
    "http://127.255.255.254:{port}/",
    "http://0.0.0.0:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://localhost.:{port}/",
    "http://localhost.localdomain:{port}/",
    "http://sub.localhost:{port}/",
    # one number, short forms, octal, hexadecimal, padded, too large
    "http://2130706433:{port}/",
    "http://0:{port}/",
    "http://127.1:{port}/",
    "http://127.0.1:{port}/",
    "http://0x7f000001:{port}/",
    "http://0X7F000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://127.0.0.0x1:{port}/",
    "http://017700000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0177.0.0.01:{port}/",
    "http://127.000.000.001:{port}/",
    "http://00000127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://4294967296:{port}/",
    "http://383.0.0.1:{port}/",
    "http://127.0.0.1.0:{port}/",
    # IPv6, and IPv4 inside it
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[::ffff:0:127.0.0.1]:{port}/",
    "http://[64:ff9b::127.0.0.1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[::1%25lo]:{port}/",
    "http://[::1%lo]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fec0::1]:{port}/",
    "http://[fd00:ec2::254]:{port}/",
    "http://[ff02::1]:{port}/",
    "http://[v1.127.0.0.1]:{port}/",
    # letters that become digits and dots
    "http://１２７.0.0.1:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127。0。0。1:{port}/",
    "http://127．0．0．1:{port}/",
    "http://127｡0｡0｡1:{port}/",
    "http://ｌｏｃａｌｈｏｓｔ:{port}/",
    "http://ⓛocalhost:{port}/",
    "http://loc\u00adalhost:{port}/",
    "http://local\u200bhost:{port}/",
    "http://٣.0.0.1:{port}/",
    # what parsers read in two ways
    "http://127%2e0%2e0%2e1:{port}/",
    "http://%6c%6f%63%61%6c%68%6f%73%74:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://user:word@127.0.0.1:{port}/",
    "http://example.com:80@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}/",
    "http:/127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}",
    "http://example.com\r\nHost: 127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nX-A: b",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1\x00.example.com:{port}/",
    "http://127.0.0.1 .example.com:{port}/",
    "http://127.0.0.1：{port}/",
    "http://example.com／@127.0.0.1:{port}/",
    "http://127.0.0.1℀example.com:{port}/",
    "http://127.0.0.1:80:{port}/",
    "http://127.0.0.1:+{port}/",
    "http://[127.0.0.1]:{port}/",
    "http://[::1]@127.0.0.1:{port}/",
    # other ways in
    "file:///etc/passwd",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_x",
    "ws://127.0.0.1:{port}/",
    "data:text/plain,hello",
    "HTTP://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}/",
    # names that lead inside, by themselves or by what resolvers say of them
    "http://127.0.0.1.nip.io:{port}/",
    "http://7f000001.nip.io:{port}/",
    "http://127-0-0-1.sslip.io:{port}/",
    "http://localtest.me:{port}/",
    "http://inside.example:{port}/",
    "http://metadata.google.internal:{port}/computeMetadata/v1/",
    "http://METADATA.google.internal.:{port}/",
    "http://metadata:{port}/",
    "http://metadata.goog:{port}/",
    "http://instance-data.ec2.internal:{port}/",
    "http://169.254.169.254:{port}/latest/meta-data/",
    "http://2852039166:{port}/",
    "http://printer.local:{port}/",
]


def test_there_are_more_than_sixty_disguises() -> None:
    assert len(set(DISGUISES)) == len(DISGUISES) > 60


@pytest.mark.parametrize("disguise", DISGUISES)
async def test_a_disguised_address_is_refused_and_nothing_connects(
    disguise: str, canary: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The most obliging resolver: every name and every way to write a number is this machine.
    resolve_with(monkeypatch, lambda _name, _count: ["127.0.0.1"])
    with pytest.raises(ToolRetry) as refused:
        await get(tool(canary), disguise.format(port=canary.port))
    assert refused.value.kind == "address_refused"
    assert not refused.value.may_have_acted
    assert canary.connections == 0


@pytest.mark.parametrize(
    "answers",
    [
        [PUBLIC, "127.0.0.1"],
        ["127.0.0.1", PUBLIC],
        [PUBLIC, "::1"],
        ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:127.0.0.1"],
        [PUBLIC, PUBLIC, "0.0.0.0"],
        ["10.1.2.3"],
        ["fe80::1%1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
    ],
)
async def test_one_answer_inside_spoils_all_answers(
    answers: list[str], canary: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_with(monkeypatch, lambda _name, _count: answers)
    with pytest.raises(ToolRetry) as refused:
        await get(tool(canary), canary.url(host="mixed.example"))
    assert refused.value.kind == "address_refused"
    assert canary.connections == 0


async def test_a_refusal_does_not_show_the_address_behind_the_name(
    canary: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_with(monkeypatch, lambda _name, _count: ["10.20.30.40"])
    with pytest.raises(ToolRetry) as refused:
        await get(tool(canary), canary.url(host="inside.example"))
    assert refused.value.message == "inside.example is not a public address."
    assert "10.20" not in repr(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.skipif(sys.platform == "darwin", reason="127.0.0.2 is not an address there")
async def test_a_name_that_turns_inside_after_the_first_lookup_never_gets_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rebinding over real sockets: 127.0.0.2 plays the internet, 127.0.0.1 the inside."""
    seen: Counter[str] = Counter()

    def flipping(name: str, _count: int) -> list[str]:
        seen[name] += 1
        return ["127.0.0.2"] if seen[name] == 1 else ["127.0.0.1"]

    asked = resolve_with(monkeypatch, flipping)
    monkeypatch.setattr("app.tools.egress.is_public", lambda address: str(address) == "127.0.0.2")
    async with (
        local_site({"/": answer("the internet")}, hosts=["127.0.0.2"]) as internet,
        local_site({"/": answer("the inside")}, port=internet.port) as inside,
    ):
        fetcher = tool(inside)
        for number in range(100):
            url = inside.url(host=f"flip{number}.example")
            assert "the internet" in await fetcher.call({"url": url}, CONTEXT)
            with pytest.raises(ToolRetry) as refused:
                await fetcher.call({"url": url}, CONTEXT)
            assert refused.value.kind == "address_refused"
        assert (internet.connections, inside.connections) == (100, 0)
    assert asked == {("str", f"flip{number}.example"): 2 for number in range(100)}


async def test_the_real_connection_goes_to_the_judged_address_and_asks_no_resolver_again(
    canary: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way down to the socket: the judged answer is this machine (listed), every later one is elsewhere."""

    def flipping(_name: str, count: int) -> list[str]:
        return ["127.0.0.1"] if count == 1 else ["192.0.2.1"]

    asked = resolve_with(monkeypatch, flipping)
    text = await get(tool(allowed_private=[f"site.example:{canary.port}"]), canary.url(host="site.example"))
    assert "the inside" in text
    assert asked == {("str", "site.example"): 1}
    assert canary.headers()["host"] == f"site.example:{canary.port}"


@pytest.mark.parametrize("name", ["str", "bytes"])
async def test_the_resolver_of_these_tests_sees_names_of_both_types(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve_with(monkeypatch, lambda _name, _count: ["127.0.0.1"])
    socket.getaddrinfo("a.example" if name == "str" else b"a.example", 80)
    assert asked == {(name, "a.example"): 1}


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:{canary}/",
        "http://localhost:{canary}/",
        "//127.0.0.1:{canary}/",
        "//0x7f.1:{canary}/",
        "http://[::1]:{canary}/",
        "http://inside.example:{canary}/",
        "http://user@127.0.0.1:{canary}/",
        "http:\\\\127.0.0.1:{canary}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{canary}/",
    ],
)
async def test_a_redirect_inside_is_refused(location: str, canary: LocalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_with(monkeypatch, lambda _name, _count: ["127.0.0.1"])
    async with local_site({"/": redirect(location.format(canary=canary.port))}) as site:
        with pytest.raises(ToolRetry) as refused:
            await get(tool(site, canary, allowed_private=[site.pair]), site.url())
        assert site.connections == 1
    # httpx itself gives up on what it cannot read as a URL.
    assert refused.value.kind == ("unreachable" if "\\" in location else "address_refused")
    assert canary.connections == 0


async def test_a_second_name_of_a_listed_address_is_refused_while_the_first_is_in_use(
    canary: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_with(monkeypatch, lambda _name, _count: ["127.0.0.1"])
    fetcher = tool(canary, allowed_private=[f"listed.example:{canary.port}"])
    for _ in range(3):
        assert "the inside" in await fetcher.call({"url": canary.url(host="listed.example")}, CONTEXT)
        for other in ("other.example", "127.0.0.1"):
            with pytest.raises(ToolRetry):
                await fetcher.call({"url": canary.url(host=other)}, CONTEXT)
    assert canary.connections == 3


async def test_no_connection_serves_two_requests_or_two_hosts(
    canary: LocalSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_with(monkeypatch, lambda _name, _count: ["127.0.0.1"])
    hosts = ["a.example", "b.example", "a.example", "b.example"]
    transport = GuardedTransport(EgressRules.of(private=[f"{host}:{canary.port}" for host in hosts]))
    async with guarded_client(transport, timeout_seconds=10) as client:  # without `Connection: close`
        for host in hosts:
            assert (await client.get(canary.url(host=host))).text == "the inside"
    assert [number for number, _ in canary.requests] == [1, 2, 3, 4]
    assert [canary.headers(number)["host"] for number in range(4)] == [f"{host}:{canary.port}" for host in hosts]


async def test_proxies_of_the_environment_are_not_asked(canary: LocalSite, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    async with local_site({"/": answer("direct")}) as site:
        assert "direct" in await get(HttpGet(allowed_private=[site.pair]), site.url())
    assert canary.connections == 0


async def test_other_ports_than_the_webs_are_refused(canary: LocalSite) -> None:
    for url in (
        f"http://{PUBLIC}:{canary.port}/",
        f"http://{PUBLIC}:22/",
        f"http://{PUBLIC}:0/",
        f"https://{PUBLIC}:0/",
    ):
        with pytest.raises(ToolRetry, match="not open") as refused:
            await get(HttpGet(), url)
        assert refused.value.kind == "address_refused"


async def test_a_listed_pair_opens_its_port_for_no_other_host(canary: LocalSite) -> None:
    fetcher = HttpGet(allowed_private=[canary.pair])
    for host in ("localhost", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "2130706433", PUBLIC):
        with pytest.raises(ToolRetry) as refused:
            await fetcher.call({"url": canary.url(host=host)}, CONTEXT)
        assert refused.value.kind == "address_refused"
    assert canary.connections == 0


@pytest.mark.parametrize(
    "pair", ["127.0.0.1", "host:", ":80", "host:web", "host:0", "host:70000", "http://host:80", ""]
)
def test_a_listed_pair_that_is_none_stops_the_start(pair: str) -> None:
    with pytest.raises(ConfigurationError, match="host:port"):
        HttpGet(allowed_private=[pair])


INSIDE = (
    "0.0.0.1 10.0.0.1 100.64.0.1 100.100.100.200 127.0.0.1 169.254.169.254 172.16.0.1 192.0.0.192 192.0.2.1 192.88.99.1"
    " 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 168.63.129.16"
    " :: ::1 ::7f00:1 ::ffff:8.8.8.8 ::ffff:0:8.8.8.8 64:ff9b::808:808 64:ff9b:1::1 100::1 2001::1 2001:db8::1"
    " 2001:10::1 2001:20::1 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00::1 fe80::1 fec0::1 ff02::1 ff0e::1 4000::1"
)


@pytest.mark.parametrize("address", INSIDE.split())
def test_no_address_with_another_meaning_is_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001:830::200e"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("https://Example.COM./a?b#c", "https://example.com/a?b"),
        ("http://bücher.example/ä", "http://xn--bcher-kva.example/%C3%A4"),
        ("https://example.com:443/", "https://example.com/"),
        ("http://example.com:443/", "http://example.com:443/"),
        ("  https://example.com/a b  ", "https://example.com/a%20b"),
        ("https://example.com/mail@example.org", "https://example.com/mail@example.org"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700:4700:0::1111]/", "https://[2606:4700:4700::1111]/"),
    ],
)
def test_a_public_url_is_read_in_its_one_spelling(written: str, read: str) -> None:
    assert str(EgressRules.of().place(written).url) == read


async def test_names_that_are_slow_to_be_found_hold_up_no_others_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own lookups are the model's: a page of links to slow names must not stop every run."""
    look_up, found, asked = socket.getaddrinfo, threading.Event(), threading.Event()

    def slow(host: Any, *more: Any, **named: Any) -> Any:
        if not str(host).startswith("slow"):
            return look_up(host, *more, **named)
        asked.set()
        found.wait()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    fetcher = tool()
    fetching = [asyncio.create_task(fetcher.call({"url": f"http://slow{n}.example/"}, CONTEXT)) for n in range(64)]
    try:
        await until(asked.is_set)
        async with asyncio.timeout(30):
            assert await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 80)
    finally:
        found.set()
        told = await asyncio.gather(*fetching, return_exceptions=True)
    assert all(isinstance(one, ToolRetry) for one in told)
