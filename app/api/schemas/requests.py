"""Bodies as clients send them, with every range and default of the contract."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from app.agents.output import SchemasTogether
from app.domain.graph import MAX_ID_CHARACTERS

MAX_PLAN_TASKS = 10_000
MAX_CONTEXT_BYTES = 64 * 1024
MAX_INTEGER = 2**53
"""What every JSON reader keeps exactly; larger integers are refused."""


class Strict(BaseModel):
    """Unknown fields are errors, and nothing is turned into another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _whole(value: object) -> object:
    # To JSON 5.0 is an integer.
    return int(value) if type(value) is float and value.is_integer() else value


def _id_text(value: object) -> object:
    # A bool is an int to Python, and no id to anybody.
    whole = _whole(value)
    return str(whole) if type(whole) is int else value


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "Say what is meant: more than white space.")
    return text


def _not_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("null_type", "Give any JSON but null.")
    return value


def _usable(schema: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    together = info.context if isinstance(info.context, SchemasTogether) else SchemasTogether()
    problem = together.problem(schema)
    if problem is not None:
        raise PydanticCustomError("invalid_schema", "{problem}", {"problem": problem})
    return schema


def _bounded(context: object) -> object:
    size = len(json.dumps(context, ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_CONTEXT_BYTES:
        raise PydanticCustomError(
            "context_too_large",
            "The context has {size} bytes as JSON; at most {most} are taken.",
            {"size": size, "most": MAX_CONTEXT_BYTES},
        )
    return context


_INTEGER = {"type": "integer", "minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}
_ID_SCHEMA = {
    "anyOf": [{"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARACTERS}, _INTEGER],
    "description": "Any characters but `/` and control characters; an integer is kept as its digits.",
}
Whole = Annotated[int, BeforeValidator(_whole)]
PlanId = Annotated[str, BeforeValidator(_id_text), WithJsonSchema(_ID_SCHEMA)]
Words = Annotated[
    str,
    Field(min_length=1, max_length=20_000, json_schema_extra={"pattern": r"\S"}),
    AfterValidator(_not_blank),
]
Context = Annotated[Any, AfterValidator(_bounded)]
OutputSchema = Annotated[dict[str, Any], AfterValidator(_usable)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
Metadata = Annotated[
    dict[MetadataKey, Annotated[str, Field(max_length=512)]],
    Field(max_length=16, description="At most 16 strings of your own, to find runs by."),
]


class ClientTask(Strict):
    """A task of the client's plan."""

    id: PlanId
    description: str = Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})
    depends_on: list[PlanId] = []
    """Ids of tasks of this plan; naming one twice is naming it once."""
    critical: bool = True
    """Whether the run needs it: one that fails and is not critical is skipped without asking."""
    tools: list[str] = []
    """Names of tools (`GET /tools`) that the task may call; the run may then use them."""
    output_schema: OutputSchema | None = None
    """JSON Schema of the task's result; one that does not match is a spoiled attempt."""


class ClientPlan(Strict):
    """The client's own graph; the planner is not asked, and `min_tasks` and `max_tasks` do not apply."""

    tasks: list[ClientTask] = Field(json_schema_extra={"minItems": 1, "maxItems": MAX_PLAN_TASKS})


class Options(Strict):
    """How a run is planned and walked."""

    model: ModelName | None = None
    """Answers instead of the service's own model."""
    planner_model: ModelName | None = None
    synthesizer_model: ModelName | None = None
    min_tasks: Whole = Field(1, ge=1, le=10_000)
    max_tasks: Whole = Field(7, ge=1, le=10_000)
    max_parallel: Whole = Field(8, ge=1, le=1_000)
    """Tasks of the run that are worked on at once."""
    max_attempts: Whole = Field(3, ge=1, le=10)
    """Tries at one task; faults of the endpoint use none."""
    max_steps: Whole = Field(20, ge=1, le=100)
    """Times that the model is asked in one attempt at a task with tools; the last time it has to answer."""
    task_timeout_seconds: Whole = Field(300, ge=1, le=86_400)
    on_failure: Literal["auto", "retry", "skip", "replan", "fail", "review"] = "auto"
    """What becomes of a task whose attempts are used up; `auto` lets the model choose among the next three."""
    max_replans: Whole = Field(2, ge=0, le=10)
    on_exhausted: Literal["fail", "review"] = "fail"
    """What follows when these means are used up: the run fails, or asks a person."""
    tools: Annotated[list[str], Field(max_length=10_000)] = []
    """Names of tools (`GET /tools`) that the run may use. The planner chooses among them for each task."""
    approval: Literal["none", "plan", "tools", "plan_and_tools"] = "none"
    """What a person is asked first: `plan`, whether each plan may be walked; `tools`, whether each call of a tool
    that has side effects may be made, with its arguments."""
    synthesize: bool = True
    """Whether the results are brought together into one answer at the end."""
    output_schema: OutputSchema | None = None
    """JSON Schema of the run's result; needs `synthesize`."""


class Budget(Strict):
    """What a run may use; null is no limit."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_INTEGER), BeforeValidator(_whole)] | None = None
    """Input and output together."""
    max_llm_calls: Annotated[int, Field(ge=1, le=MAX_INTEGER), BeforeValidator(_whole)] | None = None
    max_tool_calls: Annotated[int, Field(ge=0, le=MAX_INTEGER), BeforeValidator(_whole)] | None = None
    """Calls of tools that are made, whatever becomes of them."""
    max_seconds: Annotated[float, Field(gt=0, le=MAX_INTEGER)] | None = None
    """Time in `planning` and `running` only."""
    max_cost_usd: Annotated[float, Field(gt=0, le=MAX_INTEGER)] | None = None
    """Taken where a price is set for every model that the run uses."""


class NewRun(Strict):
    """What a fresh run of a goal does otherwise than the goal's newest run."""

    plan: ClientPlan | None = None
    """Absent: the client's plan of the newest run, if it had one. Null: a plan is drawn."""
    mode: Literal["execute", "plan_only"] = "execute"
    """`plan_only` ends with a plan and no task run."""
    options: Options = Options()
    """Those given replace the newest run's, one by one."""
    budget: Budget = Budget()
    """Those given replace the newest run's, one by one."""
    metadata: Metadata = {}
    """Replaces the newest run's; absent, that is kept."""


class NewGoal(Strict):
    """A goal, and how its first run is to go."""

    goal: Words
    """What is to be reached, in plain words."""
    context: Context = None
    """Any JSON the planner and the tasks may read, up to 64 KiB."""
    plan: ClientPlan | None = None
    mode: Literal["execute", "plan_only"] = "execute"
    """`plan_only` ends with a plan and no task run."""
    options: Options = Options()
    budget: Budget = Budget()
    metadata: Metadata = {}
    webhook_url: str | None = None


class RunRetry(Strict):
    """What a failed or cancelled run does otherwise from here on."""

    options: Options = Options()
    """Those given replace the run's, one by one."""
    budget: Budget = Budget()
    """Those given replace the run's, one by one."""


class PlainAnswer(Strict):
    """An answer that says all by itself."""

    decision: Literal["approve", "skip", "fail"]


class InstructingAnswer(Strict):
    """A plan is drawn anew; without instructions, `reject` fails the run. Or a tool is not called."""

    decision: Literal["reject", "replan"]
    instructions: Words | None = None
    """What the next plan is to heed; of a tool's call, what the model is told."""


class EditingAnswer(Strict):
    """Another plan in place of the one in question."""

    decision: Literal["edit"]
    plan: ClientPlan
    """Its tasks may also depend on tasks of the run that go on, by key, and name tools of the run's `options.tools`."""


class RetryingAnswer(Strict):
    """The task is tried again; or a tool is called again, just as it was."""

    decision: Literal["retry"]
    description: Words | None = None
    """The task in other words; not for a tool's call."""


class SupplyingAnswer(Strict):
    """The task has succeeded, or the tool was called: here is the result."""

    decision: Literal["supply"]
    result: Annotated[Any, AfterValidator(_not_null), WithJsonSchema({"not": {"type": "null"}})]


AnyAnswer = PlainAnswer | InstructingAnswer | EditingAnswer | RetryingAnswer | SupplyingAnswer


class ReviewAnswer(RootModel[Annotated[AnyAnswer, Field(discriminator="decision")]]):
    """A decision, which must be one of the review's `allowed_answers`, and what belongs to it."""


REQUEST_BODIES = (NewGoal, NewRun, RunRetry, ReviewAnswer)
