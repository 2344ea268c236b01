"""Text that every database takes, and the names of things."""

from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ids import parse_uuid, task_key
from app.domain.text import is_storable, shortened, storable

anything = st.text(alphabet=st.characters())


@given(anything)
def test_storable_text_keeps_its_length_and_all_that_can_be_kept(text: str) -> None:
    kept = storable(text)
    assert len(kept) == len(text)
    assert is_storable(kept)
    assert all(after in (before, "\N{REPLACEMENT CHARACTER}") for before, after in zip(text, kept, strict=True))
    kept.encode()


@given(anything)
def test_text_that_is_storable_stays_as_it_is(text: str) -> None:
    assert is_storable(text) == (storable(text) == text)


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ud800", "x\udc80"])
def test_nul_and_lone_surrogates_are_not_storable(text: str) -> None:
    assert not is_storable(text)


@given(anything, st.integers(1, 50))
def test_shortened_text_is_whole_or_a_head_with_an_ellipsis(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short) <= limit
    assert short == text or (len(short) == limit and short.endswith("…") and text.startswith(short[:-1]))


def test_a_text_of_just_the_limit_is_whole() -> None:
    assert shortened("12345", 5) == "12345"
    assert shortened("123456", 5) == "1234…"


def test_a_task_key_is_generation_and_id() -> None:
    assert task_key(0, "2") == "0.2"
    assert task_key(1, "a.b c") == "1.a.b c"


def test_a_uuid_is_read_in_its_canonical_form_in_either_case() -> None:
    made = uuid4()
    assert parse_uuid(str(made)) == made
    assert parse_uuid(str(made).upper()) == made


@pytest.mark.parametrize(
    "spelled", ["{{{0}}}", "urn:uuid:{0}", "{1}", " {0}", "{0} ", "{0}\n", "", "x", "{0}0", "\uff11{2}", "\x00{0}"]
)
def test_no_other_spelling_is_a_uuid_of_ours(spelled: str) -> None:
    made = UUID("12345678-1234-4678-9234-567812345678")
    assert parse_uuid(spelled.format(made, made.hex, str(made)[1:])) is None


@given(anything)
def test_any_text_is_a_uuid_or_none(text: str) -> None:
    parse_uuid(text)
