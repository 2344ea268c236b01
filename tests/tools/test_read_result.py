"""Reading the whole of another task's result, a page at a time."""

from collections.abc import Mapping
from typing import Any

import pytest

from app.domain.errors import ToolRetry
from app.tools.read_result import PAGE_CHARACTERS, read_result
from app.tools.tool import ToolContext


async def read(results: Mapping[str, str], **arguments: Any) -> str:
    context = ToolContext(run_id="r", task_key="3", idempotency_key="k", results=results)
    return await read_result.call(arguments, context)


async def refusal(results: Mapping[str, str], **arguments: Any) -> ToolRetry:
    with pytest.raises(ToolRetry) as caught:
        await read(results, **arguments)
    return caught.value


async def test_a_short_result_is_given_whole() -> None:
    assert await read({"1": "abc"}, task="1") == "Characters 0 to 2 of 3. This is the end.\nabc"


async def test_the_pages_are_the_result() -> None:
    whole = "".join(chr(0x1F300 + n % 500) for n in range(2 * PAGE_CHARACTERS + 5))
    offset, pages = 0, []
    while True:
        first, _, page = (await read({"1": "no", "2": whole}, task="2", offset=offset)).partition("\n")
        assert first.startswith(f"Characters {offset} to {offset + len(page) - 1} of {len(whole)}.")
        pages.append(page)
        offset += len(page)
        if first.endswith("This is the end."):
            break
        assert first.endswith(f"The next offset is {offset}.")
    assert [len(page) for page in pages] == [PAGE_CHARACTERS, PAGE_CHARACTERS, 5]
    assert "".join(pages) == whole


async def test_a_page_has_the_length_that_is_asked_for() -> None:
    assert (await read({"1": "abcdef"}, task="1", offset=1, length=2)).endswith("The next offset is 3.\nbc")


async def test_an_unknown_task_is_told_which_there_are() -> None:
    refused = await refusal({"1": "a", "0.2": "b"}, task="7")
    assert refused.kind == "unknown_task"
    assert "1, 0.2" in refused.message


async def test_a_task_that_depends_on_nothing_is_told_so() -> None:
    assert "none to read" in (await refusal({}, task="1")).message


async def test_many_keys_are_not_all_listed() -> None:
    assert "and 950 more" in (await refusal({str(n): "" for n in range(1_000)}, task="x")).message


async def test_an_offset_beyond_the_end_is_told_how_long_the_result_is() -> None:
    assert "3 characters" in (await refusal({"1": "abc"}, task="1", offset=3)).message


async def test_an_empty_result_is_said_to_be_empty() -> None:
    assert await read({"1": ""}, task="1") == "The result is empty: it has 0 characters."


@pytest.mark.parametrize("wrong", [{"offset": -1}, {"length": 0}, {"length": PAGE_CHARACTERS + 1}])
async def test_numbers_out_of_range_are_bad_arguments(wrong: dict[str, int]) -> None:
    assert (await refusal({"1": "abc"}, task="1", **wrong)).kind == "bad_arguments"


def test_the_context_is_no_argument() -> None:
    assert list(read_result.spec.input_schema["properties"]) == ["task", "offset", "length"]
    assert read_result.spec.input_schema["required"] == ["task"]
