"""Cursors: whoever changes one, or takes it to another list, is told so."""

import base64
import zlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.pages import PageQuery
from app.api.problems import Refused
from tests.api.asking import NOWHERE, chain, code_of, get, new_run


async def _cursor(client: httpx.AsyncClient) -> str:
    for _ in range(2):
        await new_run(client)
    return str((await get(client, "/runs", limit=1))["next_cursor"])


async def test_a_cursor_of_another_list_is_refused(client: httpx.AsyncClient) -> None:
    cursor = await _cursor(client)

    response = await client.get("/goals", params={"cursor": cursor})

    assert code_of(response, 422) == "invalid_cursor"
    assert response.json()["errors"][0]["query"] == "cursor"


async def test_a_cursor_of_another_runs_tasks_is_refused(client: httpx.AsyncClient) -> None:
    one, other = [await new_run(client, plan=chain("a", "b")) for _ in range(2)]
    cursor = (await get(client, one["links"]["tasks"], limit=1))["next_cursor"]

    assert (await client.get(one["links"]["tasks"], params={"cursor": cursor})).status_code == 200
    assert code_of(await client.get(other["links"]["tasks"], params={"cursor": cursor}), 422) == "invalid_cursor"


async def test_an_altered_cursor_is_refused_wherever_it_was_altered(client: httpx.AsyncClient) -> None:
    cursor = await _cursor(client)

    for place, letter in enumerate(cursor):
        altered = cursor[:place] + ("A" if letter != "A" else "B") + cursor[place + 1 :]
        assert code_of(await client.get("/runs", params={"cursor": altered}), 422) == "invalid_cursor"


def _sealed(text: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.crc32(text).to_bytes(4, "big") + text).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "%00",
        "ü",
        "=" * 100,
        "A" * 60_000,
        _sealed(b"[" * 40_000),
        _sealed(b'["runs"]'),
        _sealed(b'["runs", 1]'),
        _sealed(b'["runs", null]'),
        _sealed(b'["runs", "x"]'),
        _sealed(b'["runs", true]'),
        _sealed(b"[1, 2]"),
        _sealed(b'{"runs": 1}'),
        _sealed(b"\xff"),
    ],
)
async def test_what_never_was_a_cursor_is_refused_without_sql(lonely: httpx.AsyncClient, cursor: str) -> None:
    assert code_of(await lonely.get("/runs", params={"cursor": cursor}), 422) == "invalid_cursor"


@pytest.mark.parametrize("number", [-2, 2**31, 2**63, 10**400])
async def test_a_position_that_no_list_has_is_refused(lonely: httpx.AsyncClient, number: int) -> None:
    cursor = _sealed(f'["events {NOWHERE}", {number}]'.encode())

    response = await lonely.get(f"/runs/{NOWHERE}/events", params={"cursor": cursor})

    assert code_of(response, 422) == "invalid_cursor"


@given(
    st.one_of(st.text(), st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()), st.binary().map(_sealed))
)
def test_no_other_text_is_a_position(cursor: str) -> None:
    with pytest.raises(Refused) as refused:
        PageQuery(limit=1, cursor=cursor).integer("runs")

    assert refused.value.code == "invalid_cursor"


@given(st.integers(min_value=0, max_value=2**31 - 1), st.text())
def test_a_cursor_brings_back_its_position(position: int, kind: str) -> None:
    page = PageQuery(limit=1, cursor=None).page(kind, [position, position], int, int)

    assert PageQuery(limit=1, cursor=page["next_cursor"]).integer(kind) == position
