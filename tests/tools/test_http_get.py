"""`http_get` over real HTTP: what it sends, what it gives back, and where it stops."""

import asyncio
import gzip
import json
import ssl
import zlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from app import __version__
from app.domain.errors import ToolRetry
from app.domain.status import SideEffects
from app.tools.http_get import HttpGet
from app.tools.tool import Tool, ToolContext
from tests.local_site import LocalSite, answer, local_site, redirect
from tests.polling import until

CONTEXT = ToolContext(run_id="r", task_key="t", idempotency_key="k")
HTML = "text/html; charset=utf-8"


async def get(site: LocalSite, path: str = "/", **options: Any) -> str:
    fetcher = HttpGet(**{"allowed_private": [site.pair], "timeout_seconds": 20, **options})
    return await fetcher.call({"url": site.url(path)}, CONTEXT)


async def refusal(site: LocalSite, path: str = "/", **options: Any) -> ToolRetry:
    with pytest.raises(ToolRetry) as refused:
        await get(site, path, **options)
    assert not refused.value.may_have_acted
    return refused.value


async def body_of(page: bytes, **options: Any) -> str:
    async with local_site({"/": page}) as site:
        return (await get(site, **options)).partition("\n\n")[2]


def test_it_says_that_it_changes_nothing_and_takes_a_url_alone() -> None:
    fetcher: Tool = HttpGet()
    assert (fetcher.spec.name, fetcher.spec.side_effects) == ("http_get", SideEffects.NONE)
    assert fetcher.spec.input_schema["required"] == ["url"]
    assert fetcher.spec.input_schema["additionalProperties"] is False


async def test_the_answer_begins_with_url_status_and_content_type() -> None:
    async with local_site({"/a": answer("hello")}) as site:
        assert await get(site, "/a") == f"URL: {site.url('/a')}\nStatus: 200 OK\nContent type: text/plain\n\nhello"


async def test_it_names_itself_and_sends_nothing_that_tells_of_others() -> None:
    async with local_site({"/": answer("x")}) as site:
        await get(site)
        headers = site.headers()
    assert headers["user-agent"] == f"Planwave/{__version__} (+http_get)"
    assert set(headers) == {"host", "user-agent", "accept", "accept-encoding", "connection"}


async def test_cookies_are_never_kept() -> None:
    async with local_site({"/": answer("x", set_cookie="a=b; Path=/"), "/in": redirect("/")}) as site:
        fetcher = HttpGet(allowed_private=[site.pair])
        for path in ("/", "/in", "/"):
            await fetcher.call({"url": site.url(path)}, CONTEXT)
        assert all("cookie" not in site.headers(number) for number in range(4))


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_followed_and_the_final_url_is_shown(status: str) -> None:
    async with local_site({"/a/b": redirect("../c?d=e", status), "/c?d=e": answer("there")}) as site:
        text = await get(site, "/a/b")
        assert text.startswith(f"URL: {site.url('/c?d=e')}\n")
        assert text.endswith("there")


async def test_a_redirect_to_another_host_carries_nothing_over() -> None:
    async with (
        local_site({"/secret?key=1": answer("there")}) as other,
        local_site({"/from": redirect(other.url("/secret?key=1"))}) as site,
    ):
        await get(site, "/from", allowed_private=[site.pair, other.pair])
        assert set(other.headers()) == {"host", "user-agent", "accept", "accept-encoding", "connection"}
        assert other.headers()["host"] == other.pair


async def test_three_redirects_are_followed_and_a_fourth_is_not() -> None:
    pages = {f"/{number}": redirect(f"/{number + 1}") for number in range(4)} | {"/4": answer("end")}
    async with local_site(dict(pages)) as site:
        assert "end" in await get(site, "/1")
        site.requests.clear()
        assert (await refusal(site, "/0")).kind == "too_many_redirects"
        assert len(site.requests) == 4


async def test_packed_bodies_are_unpacked() -> None:
    assert await body_of(answer(gzip.compress(b"packed"), content_encoding="gzip")) == "packed"


async def test_a_body_of_several_packed_members_is_said_to_be_cut_after_the_first() -> None:
    members = gzip.compress(b"one ") + gzip.compress(b"two")
    async with local_site({"/": answer(members, content_encoding="gzip")}) as site:
        text = await get(site)
    assert "the body was cut; what follows comes of its first 4 bytes" in text


async def test_a_bomb_is_cut_at_the_limit_as_unpacked() -> None:
    bomb = gzip.compress(b"a" * (32 * 1024 * 1024), compresslevel=6)
    async with local_site({"/": answer(bomb, content_encoding="gzip")}) as site:
        text = await get(site, max_bytes=10_000, max_characters=20_000)
    assert "first 10000 bytes" in text
    assert text.count("a" * 10_000) == 1
    assert len(text) < 10_500


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "deflate", "zstd", "gzip,deflate"])
async def test_packings_that_were_not_asked_for_are_refused(encoding: str) -> None:
    async with local_site({"/": answer(gzip.compress(gzip.compress(b"x")), content_encoding=encoding)}) as site:
        assert (await refusal(site)).kind == "not_text"


async def test_a_body_that_is_not_what_it_is_said_to_be_packed_as_is_refused() -> None:
    async with local_site({"/": answer(zlib.compress(b"x"), content_encoding="gzip")}) as site:
        assert (await refusal(site)).kind == "not_text"


async def test_an_endless_body_is_cut() -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with local_site({"/": endless}) as site:
        text = await get(site, max_bytes=100_000, max_characters=200_000)
    assert "first 100000 bytes" in text
    assert text.endswith("\n\n" + "x" * 100_000)


async def test_a_body_of_exactly_the_limit_is_whole() -> None:
    async with local_site(
        {"/": answer("x" * 1000), "/z": answer(gzip.compress(b"x" * 1000), content_encoding="gzip")}
    ) as site:
        for path in ("/", "/z"):
            text = await get(site, path, max_bytes=1000)
            assert "Note" not in text
            assert text.endswith("\n\n" + "x" * 1000)


async def test_long_texts_are_cut_and_say_so() -> None:
    async with local_site({"/": answer("x" * 1001), "/fits": answer("x" * 1000)}) as site:
        text = await get(site, max_characters=1000)
        assert "cut after 1000 characters" in text
        assert text.endswith("\n\n" + "x" * 1000)
        assert "Note" not in await get(site, "/fits", max_characters=1000)


async def test_a_body_that_drips_meets_the_limit_of_the_whole_call() -> None:
    """Each wait is short; only the sum is too long."""
    dripped = 0

    async def dripping(writer: asyncio.StreamWriter) -> None:
        nonlocal dripped
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x")
            dripped += 1
            await writer.drain()
            await asyncio.sleep(0.02)

    async with local_site({"/": dripping}) as site:
        refused = await refusal(site, timeout_seconds=0.5)
    assert refused.kind == "timeout"
    assert dripped > 1


async def test_a_server_that_never_answers_meets_the_limit() -> None:
    async def silent(_: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with local_site({"/": silent}) as site:
        assert (await refusal(site, timeout_seconds=0.2)).kind == "timeout"


async def test_a_server_that_is_not_there_is_unreachable_without_showing_where_it_was_looked_for() -> None:
    async with local_site() as site:
        pass
    refused = await refusal(site, timeout_seconds=10)
    assert refused.kind == "unreachable"
    assert "127.0.0.1" not in refused.message


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Type: text/plain\r\n\r\nx",
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
        b"",
    ],
)
async def test_a_server_that_speaks_no_proper_http_is_unreachable(raw: bytes) -> None:
    async def odd(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    async with local_site({"/": odd}) as site:
        assert (await refusal(site)).kind in ("unreachable", "address_refused")


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "500 Internal Server Error", "503 Away"])
async def test_an_error_status_is_told_with_the_head_of_its_text(status: str) -> None:
    page = answer("<h1>So sorry</h1><script>x</script>" + "<p>more</p>" * 1000, status=status, kind=HTML)
    async with local_site({"/": page}) as site:
        refused = await refusal(site)
    assert refused.kind == "http_status"
    assert f"answered {status[:3]}" in refused.message
    assert "So sorry" in refused.message
    assert len(refused.message) < 700


@pytest.mark.parametrize("kind", ["image/png", "application/pdf", "application/octet-stream", "video/mp4", "odd", None])
async def test_what_is_no_text_is_refused_by_name(kind: str | None) -> None:
    async with local_site({"/": answer(b"\x89PNG", kind=kind)}) as site:
        refused = await refusal(site)
    assert refused.kind == "not_text"
    named = "application/octet-stream" if kind == "odd" else kind or "no Content-Type"
    assert named in refused.message


@pytest.mark.parametrize(
    "kind", ["application/json", "application/problem+json", "application/feed+json; charset=utf-8"]
)
async def test_json_is_kept_as_it_is(kind: str) -> None:
    text = json.dumps({"a": [1, 2.50, "<b>ü</b>"], "b": None}, indent=3)
    assert await body_of(answer(text, kind=kind)) == text


@pytest.mark.parametrize("kind", ["application/xml", "application/rss+xml", "text/xml", "text/csv", "text/markdown"])
async def test_xml_and_plain_text_are_kept_as_they_are(kind: str) -> None:
    text = "<?xml version='1.0'?>\n<a>  <script>x</script></a>"
    assert await body_of(answer(text, kind=kind)) == text


async def test_xhtml_is_read_as_a_page() -> None:
    assert await body_of(answer("<h1>Hi</h1><script>x</script>", kind="application/xhtml+xml")) == "# Hi"


async def test_nul_does_not_come_through() -> None:
    assert await body_of(answer("a\0b")) == "a\N{REPLACEMENT CHARACTER}b"


async def test_links_are_absolute_from_the_final_url() -> None:
    async with local_site(
        {"/a": redirect("/deep/page"), "/deep/page": answer("<a href=next>on</a>", kind=HTML)}
    ) as site:
        assert f"on ({site.url('/deep/next')})" in await get(site, "/a")


async def test_many_calls_go_on_at_once() -> None:
    together = asyncio.Barrier(8)

    async def meeting(writer: asyncio.StreamWriter) -> None:
        await together.wait()
        writer.write(answer("met"))

    async with local_site({"/": meeting}) as site:
        fetcher = HttpGet(allowed_private=[site.pair])
        texts = await asyncio.gather(*(fetcher.call({"url": site.url()}, CONTEXT) for _ in range(8)))
    assert all(text.endswith("met") for text in texts)


def certificate(folder: Path, *names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for `names`, and a client's that trusts it."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 (only where it is there)
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=str(file))


async def test_tls_is_spoken_and_judged_under_the_urls_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, trusting = certificate(tmp_path, "site.example", "127.0.0.1")
    asked: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: asked.append(name)

    def at_home(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr("app.tools.egress.socket.getaddrinfo", at_home)
    async with local_site({"/": answer("private")}, tls=server) as site:
        pairs = [f"{host}:{site.port}" for host in ("site.example", "other.example", "127.0.0.1")]
        fetcher = HttpGet(allowed_private=pairs, tls=trusting)
        for host in ("site.example", "127.0.0.1"):
            text = await fetcher.call({"url": site.url(host=host, scheme="https")}, CONTEXT)
            assert text.endswith("private")
            assert site.headers()["host"] == f"{host}:{site.port}"
        with pytest.raises(ToolRetry) as refused:
            await fetcher.call({"url": site.url(host="other.example", scheme="https")}, CONTEXT)
        assert refused.value.kind == "unreachable"
        assert len(site.requests) == 2
    assert asked == ["site.example", None, "other.example"]


async def test_a_call_that_is_cancelled_anywhere_leaves_no_connection_open() -> None:
    """Also where the cancel comes while its answer is being closed."""
    async with local_site({"/": answer("x" * 50_000)}) as site:
        before = open_sockets()
        fetcher = HttpGet(allowed_private=[site.pair])
        for turns in range(60):
            for _ in range(5):
                fetching = asyncio.create_task(fetcher.call({"url": site.url()}, CONTEXT))
                for _ in range(turns):
                    await asyncio.sleep(0)
                fetching.cancel()
                await asyncio.wait([fetching])
        await until(lambda: open_sockets() <= before)


def open_sockets() -> int:
    """Of this process."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(descriptor.readlink()).startswith("socket:")
    return found


@pytest.mark.parametrize("status", ["204 No Content", "205 Reset Content"])
async def test_an_answer_without_a_body_is_told_as_one(status: str) -> None:
    async with local_site({"/": answer(status=status, kind=None)}) as site:
        assert await get(site) == f"URL: {site.url()}\nStatus: {status}\n\n(The answer has no body.)"
