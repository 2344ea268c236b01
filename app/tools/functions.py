"""Python functions as tools: the schema from the types, the description from the docstring, results as text."""

import asyncio
import functools
import importlib
import inspect
import json
import re
import traceback
from collections.abc import Callable, Coroutine, Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, Generic, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints, overload

import structlog
from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaError, to_json

from app.domain.errors import ConfigurationError, ToolError, ToolFailed, ToolRetry
from app.domain.status import SideEffects
from app.domain.text import shortened, storable
from app.tools.arguments import MAX_PROBLEMS, pointer
from app.tools.redaction import Redaction
from app.tools.threads import Threads
from app.tools.tool import ToolContext, ToolSpec

ENTRY_POINTS = "planwave.tools"
NAME = re.compile("[A-Za-z0-9_-]{1,64}")

_THREADS_PER_TOOL = 8
_MAX_WORDS = 300

_log = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Called = TypeVar("Called")
Effects = SideEffects | Literal["none", "idempotent", "once"]


class FunctionTool(Generic[P, R]):
    """A function that a task can call, and that Python code calls as before.

    An async function runs on the event loop and must not block it. Any other runs in a thread, of which each tool has
    8 of its own: calls beyond that wait for one, so a function that blocks for ever stops no tool but itself. A thread
    cannot be stopped: when its call is cancelled or out of time, the function goes on, and what it gives is dropped.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        side_effects: Effects = SideEffects.NONE,
        name: str | None = None,
        secrets: tuple[str, ...] = (),
    ) -> None:
        if not inspect.isfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"{function!r} cannot be a tool: only a function can, sync or async.")
        self._function: Callable[..., Any] = function
        self._where = f"{function.__module__}.{function.__qualname__}"
        self.secrets = secrets
        name = function.__name__ if name is None else name
        description = inspect.cleandoc(function.__doc__ or "").strip()
        if not NAME.fullmatch(name):
            raise self._unusable(f"its name {name!r} is not 1 to 64 letters, digits, _ and -; give it another `name=`.")
        if not description:
            raise self._unusable("it has no docstring, which is what the model reads of it; write one.")
        if side_effects not in tuple(SideEffects):
            raise self._unusable(f"its side effects are none, idempotent or once, not {side_effects!r}.")
        if isinstance(secrets, str) or not all(isinstance(secret, str) and secret for secret in secrets):
            raise self._unusable('its secrets are not a tuple of names, such as `secrets=("API_KEY",)`.')
        self._context_names: list[str] = []
        self._names: dict[str, str] = {}
        self._model = self._model_of(function)
        self._spec = ToolSpec(
            name=name,
            description=description,
            input_schema=self._schema(),
            side_effects=SideEffects(side_effects),
        )
        self._threads = Threads(name=f"tool-{name}", bound=_THREADS_PER_TOOL)
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function itself."""
        answer: R = self._function(*args, **kwargs)
        return answer

    def __repr__(self) -> str:
        return f"<tool {self._spec.name}: {self._where}>"

    @property
    def spec(self) -> ToolSpec:
        """What it says of itself."""
        return self._spec

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> str:
        """Call the function with the arguments as its types want them; text as it is, anything else as JSON.

        Raises `ToolRetry` (`bad_arguments`), what the function raises of `ToolError`, and for anything else that it
        raises `ToolFailed` (`tool_failed`), with the stack in the log.
        """
        try:
            given = self._given(arguments, context)
        except ValidationError as error:
            raise ToolRetry(_problems(error), kind="bad_arguments", may_have_acted=False) from None
        except Exception as error:  # noqa: BLE001 - validators of an operator's types; it is logged
            raise self._failed(error, context, may_have_acted=False) from None
        answer: Any = None
        if not inspect.iscoroutinefunction(self._function):
            answer = await self._in_thread(functools.partial(self._called, given, context), context)
            if isinstance(answer, str):
                return answer
        try:
            return _as_text(await (answer or self._function(**given)))
        except ToolError:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._failed(error, context) from None  # not ours: something that the function waited for
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - an operator's code, whatever it raises; it is logged
            raise self._failed(error, context) from None

    async def _in_thread(self, do: Callable[[], Called], context: ToolContext) -> Called:
        future = self._threads.submit(do)
        try:
            return await asyncio.wrap_future(future)
        finally:
            if not future.cancel() and not future.done():
                _log.warning("tool goes on in its thread", **self._fields(context))

    def _called(self, given: Mapping[str, Any], context: ToolContext) -> str | Coroutine[Any, Any, Any]:
        """What it gives; of an async function behind a decorator that is none, what is to be awaited on the loop."""
        try:
            answer = self._function(**given)
            return answer if inspect.iscoroutine(answer) else _as_text(answer)
        except ToolError:
            raise
        except BaseException as error:  # noqa: BLE001 - in a thread it is the function's, whatever it is
            raise self._failed(error, context) from None

    def _given(self, arguments: Mapping[str, Any], context: ToolContext) -> dict[str, Any]:
        """The arguments of the function's own types. As JSON, so that what is strict still takes a date as text."""
        read = self._model.model_validate_json(json.dumps(dict(arguments)))
        given = {name: getattr(read, field) for field, name in self._names.items()}
        return given | dict.fromkeys(self._context_names, context)

    def _failed(self, error: BaseException, context: ToolContext, *, may_have_acted: bool = True) -> ToolFailed:
        kind = type(error).__name__
        if isinstance(error, _NoText):
            message = f"The tool {self._spec.name} gave a result that cannot be written as JSON."
        else:
            message = f"The tool {self._spec.name} failed with {kind}."
        stack = Redaction(context.secrets.values())("".join(traceback.format_exception(error)))
        _log.error("tool failed", **self._fields(context), exception=stack)
        return ToolFailed(message, kind="tool_failed", may_have_acted=may_have_acted, answered=False)

    def _fields(self, context: ToolContext) -> dict[str, str]:
        return {"tool": self._spec.name, "run_id": context.run_id, "task_key": context.task_key}

    def _unusable(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"The function {self._where} cannot be a tool: {why}")

    def _model_of(self, function: Callable[..., Any]) -> type[BaseModel]:
        """What its arguments must be. The model's own names are numbers, for those of parameters can be anything."""
        try:
            hints = get_type_hints(function, include_extras=True)
        except (NameError, TypeError, AttributeError, SyntaxError) as error:
            raise self._unusable(f"a type in its signature cannot be found ({error}).") from error
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise self._unusable(f"its parameter {parameter} cannot be given by name.")
            if parameter.annotation is parameter.empty:
                raise self._unusable(f"its parameter {name} has no type.")
            if hints[name] is ToolContext:
                self._context_names.append(name)
                continue
            if _holds_context(hints[name]):
                raise self._unusable(f"its parameter {name} has to be of the type ToolContext and nothing around it.")
            field = f"a{len(fields)}"
            self._names[field] = name
            # An alias of each, and no generator: dataclasses and the like within would inherit it. First, so that one
            # that the author has given goes before it.
            plain, *notes = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
            hint: Any = Annotated[(plain, Field(alias=name), *notes)]
            fields[field] = hint if parameter.default is parameter.empty else (hint, parameter.default)
        config = ConfigDict(extra="forbid")
        try:
            return create_model("Arguments", __config__=config, **fields)
        except (PydanticUserError, SchemaError, TypeError, ValueError) as error:
            raise self._unusable(f"its types cannot be read from JSON ({error}).") from error

    def _schema(self) -> dict[str, Any]:
        try:
            schema = self._model.model_json_schema(schema_generator=_PlainSchema)
        except PydanticUserError as error:
            raise self._unusable(f"its types have no JSON Schema ({error}).") from error
        return {name: part for name, part in schema.items() if name != "title"}


class _PlainSchema(GenerateJsonSchema):
    """Without titles, which say again what the names say, and without defaults that are no JSON."""

    ignored_warning_kinds = {*GenerateJsonSchema.ignored_warning_kinds, "non-serializable-default"}  # noqa: RUF012

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


AnyFunctionTool = FunctionTool[..., Any]


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *, side_effects: Effects = ..., name: str | None = None, secrets: tuple[str, ...] = ()
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    side_effects: Effects = SideEffects.NONE,
    name: str | None = None,
    secrets: tuple[str, ...] = (),
) -> Any:
    """Make a function a tool: `@tool`, or `@tool(side_effects="once", name=..., secrets=("API_KEY",))`.

    Every parameter needs a type; one of the type `ToolContext` gets the context, with the secrets that are named here.
    Raises `ConfigurationError`.
    """
    make = functools.partial(FunctionTool[..., Any], side_effects=side_effects, name=name, secrets=secrets)
    return make if function is None else make(function)


def installed_tools() -> list[AnyFunctionTool]:
    """Those that installed packages offer under the entry points `planwave.tools`. Raises `ConfigurationError`."""
    return [
        _tool_at(f"The entry point {point.name} = {point.value} of {ENTRY_POINTS}", point.load)
        for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (point.name, point.value))
    ]


def tools_of(module_path: str) -> list[AnyFunctionTool]:
    """The tools of `package.module`, or the one named by `package.module:name`. Raises `ConfigurationError`."""
    path, colon, name = module_path.partition(":")
    where = f"The tool module {module_path}"
    if not re.fullmatch(r"\w+(\.\w+)*", path) or (colon and not name.isidentifier()):
        raise ConfigurationError(f"{where} is neither package.module nor package.module:name.")
    if name:
        return [_tool_at(where, lambda: getattr(importlib.import_module(path), name))]
    module = _imported(where, lambda: importlib.import_module(path))
    found = {id(value): value for value in vars(module).values() if isinstance(value, FunctionTool)}
    if not found:
        raise ConfigurationError(f"{where} has no tools: functions with @tool from app.tools.functions.")
    return list(found.values())


def _holds_context(hint: Any) -> bool:
    """Whether a model would be asked for a context."""
    return hint is ToolContext or any(map(_holds_context, get_args(hint)))


def _tool_at(where: str, load: Callable[[], Any]) -> AnyFunctionTool:
    found = _imported(where, load)
    if not isinstance(found, FunctionTool):
        raise ConfigurationError(f"{where} is no tool, but a {type(found).__name__}; decorate a function with @tool.")
    return found


def _imported(where: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except SystemExit as error:
        said = shortened(f": {error.code}", 1_000) if isinstance(error.code, str) else ""
        raise ConfigurationError(f"{where} cannot be imported: it ended the program{said}") from error
    except Exception as error:
        why = str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"{where} cannot be imported: {shortened(why, 1_000)}") from error


class _NoText(Exception):
    """A result that is no JSON."""


def _as_text(result: Any) -> str:
    if isinstance(result, str):
        return str.__str__(result)  # of an enumeration's member its value
    try:
        return to_json(result, inf_nan_mode="strings").decode()
    except Exception as error:
        if inspect.iscoroutine(result):
            result.close()
        raise _NoText from error


def _problems(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"- {pointer(*one['loc']) or 'the whole'}: {one['msg']}" for one in found[:MAX_PROBLEMS]]
    return "\n".join(["The arguments do not fit the tool:", *(shortened(storable(line), _MAX_WORDS) for line in lines)])
