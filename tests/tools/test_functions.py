"""Python functions as tools: their schema, what they are given, what comes back, and where they run."""

import asyncio
import datetime as dt
import enum
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import pytest
import structlog
from pydantic import BaseModel, Field, Strict, field_validator

from app.domain.errors import ConfigurationError, ToolError, ToolFailed, ToolRetry
from app.domain.status import SideEffects
from app.tools.arguments import schema_problem
from app.tools.functions import tool
from app.tools.tool import Tool, ToolContext


class Panic(BaseException):
    """As Rust's panics arrive in Python."""


@dataclass
class Corner:
    x: int
    a0: float = 1.5


class Span(NamedTuple):
    first: int
    last: int


CONTEXT = ToolContext(run_id="run-1", task_key="2", idempotency_key="k", secrets={"API_KEY": "canary-123"})


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Mood(enum.StrEnum):
    GOOD = "good"


class Stop(BaseModel):
    name: str
    nights: int = 1

    @field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        if name == "nowhere":
            raise ValueError("there is no such place")
        if name == "broken":
            raise KeyError("canary-123")
        return name


async def called(a_tool: Tool, **arguments: Any) -> str:
    return await a_tool.call(arguments, CONTEXT)


async def trouble(a_tool: Tool, **arguments: Any) -> ToolError:
    with pytest.raises(ToolError) as caught:
        await called(a_tool, **arguments)
    return caught.value


def refused(function: Callable[..., Any], **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        tool(**options)(function)
    return str(caught.value)


# What it says of itself.


@tool
def greet(name: str, times: Annotated[int, Field(ge=1, le=3, description="How often")] = 1) -> str:
    """Greet somebody.

    In English.
    """
    return " ".join([f"Hello {name}"] * times)


def test_the_schema_comes_from_the_types() -> None:
    assert greet.spec.input_schema == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "times": {"type": "integer", "minimum": 1, "maximum": 3, "default": 1, "description": "How often"},
        },
        "required": ["name"],
        "additionalProperties": False,
    }


def test_name_and_description_are_the_functions() -> None:
    assert greet.spec.name == "greet"
    assert greet.spec.description == "Greet somebody.\n\nIn English."
    assert greet.spec.side_effects is SideEffects.NONE


def test_the_decorator_takes_options() -> None:
    @tool(side_effects="once", name="pay-now", secrets=("API_KEY",))
    async def pay() -> str:
        """Pay."""
        return ""

    assert pay.spec.name == "pay-now"
    assert pay.spec.side_effects is SideEffects.ONCE
    assert pay.secrets == ("API_KEY",)


async def test_the_function_stays_callable_as_it_was() -> None:
    @tool(name="other")
    async def twice(number: int) -> int:
        """Double."""
        return 2 * number

    assert greet("Ada", times=2) == "Hello Ada Hello Ada"
    assert await twice(4) == 8
    assert inspect.signature(greet).parameters.keys() == {"name", "times"}
    assert inspect.getdoc(greet) == "Greet somebody.\n\nIn English."


def test_names_that_models_of_pydantic_keep_for_themselves_can_be_parameters() -> None:
    @tool
    def awkward(schema: str, copy: int, model_config: str, _private: str = "", json: bool = False) -> str:
        """Take awkward names."""
        return schema

    assert list(awkward.spec.input_schema["properties"]) == ["schema", "copy", "model_config", "_private", "json"]
    assert schema_problem(awkward.spec.input_schema) is None


def test_nested_types_are_described() -> None:
    @tool
    def plan(stops: list[Stop], colour: Colour, mode: Literal["slow", "fast"] = "slow") -> str:
        """Plan."""
        return ""

    schema = plan.spec.input_schema
    assert schema["$defs"]["Stop"]["required"] == ["name"]
    assert schema["properties"]["mode"]["enum"] == ["slow", "fast"]
    assert schema_problem(schema) is None


def test_a_function_without_arguments_takes_an_empty_object() -> None:
    @tool
    def now() -> str:
        """Say the time."""
        return ""

    assert now.spec.input_schema == {"type": "object", "properties": {}, "additionalProperties": False}


def test_what_is_no_tool_is_refused_with_the_reason() -> None:
    def untyped(a, b: int) -> None:  # type: ignore[no-untyped-def]
        """Do."""

    def silent(a: int) -> None: ...

    def many(*args: int) -> None:
        """Do."""

    def named(**kwargs: int) -> None:
        """Do."""

    def positional(a: int, /) -> None:
        """Do."""

    def unknown(a: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
        """Do."""

    def strange(a: threading.Lock) -> None:
        """Do."""

    def wordless(a: Callable[[], int]) -> None:
        """Do."""

    def pattern(a: Annotated[str, Field(pattern="(")]) -> None:
        """Do."""

    async def stream() -> Any:
        """Do."""
        yield 1

    def fine() -> None:
        """Do."""

    assert "a has no type" in refused(untyped)
    assert "no docstring" in refused(silent)
    assert "*args" in refused(many)
    assert "**kwargs" in refused(named)
    assert "by name" in refused(positional)
    assert "Nowhere" in refused(unknown)
    assert "JSON" in refused(strange)
    assert "JSON" in refused(wordless)
    assert "pattern" in refused(pattern)
    assert "only a function" in refused(stream)
    assert "only a function" in refused(int)
    assert "'a b'" in refused(fine, name="a b")
    assert "'" + "x" * 65 + "'" in refused(fine, name="x" * 65)
    assert "side effects" in refused(fine, side_effects="some")
    assert "secrets" in refused(fine, secrets="API_KEY")
    assert "fine" in refused(fine, name="")


# What it is given.


async def test_arguments_arrive_as_the_declared_types() -> None:
    given: list[Any] = []

    @tool
    def take(
        *, day: dt.date, stop: Stop, colour: Colour, price: Decimal, tags: set[str], exact: Annotated[dt.date, Strict()]
    ) -> None:
        """Take."""
        given.extend([day, stop, colour, price, tags, exact])

    day = "2026-01-02"
    await called(take, day=day, stop={"name": "Rome"}, colour="blue", price="1.10", tags=["a", "a"], exact=day)
    date = dt.date(2026, 1, 2)
    assert given == [date, Stop(name="Rome"), Colour.BLUE, Decimal("1.10"), {"a"}, date]


async def test_dataclasses_and_their_like_are_arguments_under_their_own_names() -> None:
    given: list[Any] = []

    @tool
    def take(corners: list[Corner], span: Span) -> None:
        """Take."""
        given.extend([corners, span])

    await called(take, corners=[{"x": 1, "a0": 2}], span=[1, 2])
    assert given == [[Corner(1, 2.0)], Span(1, 2)]
    assert set(take.spec.input_schema["$defs"]["Corner"]["properties"]) == {"x", "a0"}


async def test_an_alias_of_the_author_is_what_the_model_is_told() -> None:
    @tool
    def travel(start: Annotated[str, Field(alias="from")], to: str) -> str:
        """Travel."""
        return f"{start} to {to}"

    assert list(travel.spec.input_schema["properties"]) == ["from", "to"]
    assert await travel.call({"from": "A", "to": "B"}, CONTEXT) == "A to B"


def test_a_context_that_a_model_could_give_is_refused() -> None:
    def maybe(here: ToolContext | None = None) -> None:
        """Take."""

    assert "ToolContext and nothing around it" in refused(maybe)


async def test_defaults_are_pythons_own() -> None:
    marker = object()
    given: list[Any] = []

    @tool
    def take(a: int = 3, b: Any = marker, c: Annotated[int, Field(default=7)] = 8, *, d: str | None = None) -> None:
        """Take."""
        given.extend([a, b, c, d])

    await called(take)
    assert given == [3, marker, 8, None]
    assert "default" not in take.spec.input_schema["properties"]["b"]


async def test_a_parameter_of_the_contexts_type_gets_the_context() -> None:
    @tool
    def where(here: ToolContext, more: str = "") -> str:
        """Say where."""
        return f"{here.run_id} {here.secrets['API_KEY']}"

    assert list(where.spec.input_schema["properties"]) == ["more"]
    assert await called(where) == "run-1 canary-123"
    assert (await trouble(where, here={})).kind == "bad_arguments"


async def test_bad_arguments_are_told_with_their_places() -> None:
    @tool
    def take(stops: list[Stop], number: int = 0) -> None:
        """Take."""

    wrong = await trouble(take, stops=[{"name": "Rome"}, {"name": "nowhere"}], number="x", more=1)
    assert isinstance(wrong, ToolRetry)
    assert wrong.kind == "bad_arguments"
    assert not wrong.may_have_acted
    for part in ("- /stops/1/name: ", "no such place", "- /number: ", "- /more: "):
        assert part in wrong.message


async def test_at_most_five_bad_arguments_are_told() -> None:
    @tool
    def take() -> None:
        """Take."""

    assert (await trouble(take, **{f"n{n}": 1 for n in range(9)})).message.count("\n- ") == 5


async def test_a_validator_that_breaks_is_a_failure_that_has_not_acted() -> None:
    @tool
    def take(stop: Stop) -> None:
        """Take."""

    failed = await trouble(take, stop={"name": "broken"})
    assert isinstance(failed, ToolFailed)
    assert not failed.may_have_acted
    assert "canary" not in failed.message


# What comes back.


class Row(TypedDict):
    at: dt.date


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it is\n", "as it is\n"),
        (Mood.GOOD, "good"),
        (None, "null"),
        (3, "3"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        (Stop(name="Rome"), '{"name":"Rome","nights":1}'),
        ([Row(at=dt.date(2026, 1, 2))], '[{"at":"2026-01-02"}]'),
        ({"x": float("nan")}, '{"x":"NaN"}'),
    ],
    ids=range(8),
)
async def test_text_comes_as_it_is_and_the_rest_as_json(result: Any, text: str) -> None:
    @tool
    def give() -> Any:
        """Give."""
        return result

    @tool
    async def give_later() -> Any:
        """Give."""
        return result

    assert await called(give) == text
    assert await called(give_later) == text


async def test_what_is_no_json_is_a_failure() -> None:
    @tool
    def give() -> object:
        """Give."""
        return object()

    around: list[Any] = []
    around.append(around)

    @tool
    async def give_a_circle() -> Any:
        """Give."""
        return around

    for one in (give, give_a_circle):
        failed = await trouble(one)
        assert isinstance(failed, ToolFailed)
        assert failed.kind == "tool_failed"
        assert "cannot be written as JSON" in failed.message
        assert failed.may_have_acted


# What it raises.


def raising(error: BaseException) -> list[Tool]:
    @tool
    def now() -> None:
        """Raise."""
        raise error

    @tool
    async def later() -> None:
        """Raise."""
        raise error

    return [now, later]


@pytest.mark.parametrize("error", [ToolRetry("busy", kind="busy"), ToolFailed("gone", kind="gone")])
async def test_errors_of_tools_pass_as_they_are(error: ToolError) -> None:
    for one in raising(error):
        assert await trouble(one) is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("canary-123"),
        ValueError("canary-123"),
        SystemExit("canary-123"),
        Panic("canary-123"),
        StopIteration(1),
    ],
)
async def test_any_other_error_shows_only_its_type(error: BaseException) -> None:
    for one in raising(error):
        if isinstance(error, StopIteration) and one.spec.name == "later":
            continue  # Python itself makes a RuntimeError of it
        with structlog.testing.capture_logs() as logs:
            failed = await trouble(one)
        assert isinstance(failed, ToolFailed)
        assert failed.kind == "tool_failed"
        assert failed.message == f"The tool {one.spec.name} failed with {type(error).__name__}."
        (log,) = logs
        assert (log["event"], log["tool"], log["run_id"], log["task_key"]) == (
            "tool failed",
            one.spec.name,
            "run-1",
            "2",
        )
        assert "Traceback" in log["exception"]
        assert "canary-123" not in log["exception"]


async def test_an_error_of_a_tool_takes_what_a_tool_has_caught_and_needs_no_kind() -> None:
    for one in raising(ToolRetry(KeyError("customer 7"))):
        told = await trouble(one)
        assert (told.message, told.kind) == ("'customer 7'", "tool_error")


async def test_a_cancellation_that_is_not_ours_is_a_failure() -> None:
    for one in raising(asyncio.CancelledError()):
        assert isinstance(await trouble(one), ToolFailed)


async def test_an_async_function_is_cancelled_with_its_caller() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @tool
    async def wait() -> None:
        """Wait."""
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(called(wait))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
