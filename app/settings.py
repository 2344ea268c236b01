"""Every setting, from the environment or `.env`, with its default and its unit in its name."""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain.status import Seat
from app.domain.usage import Price

OFFLINE_MODEL = "offline"

_READING = SettingsConfigDict(
    env_file=".env", extra="ignore", env_ignore_empty=True, str_strip_whitespace=True, hide_input_in_errors=True
)
_MAX_SECONDS = 1_000_000
"""Eleven days: more is a slip, and far more is too much for clocks, timers and columns."""
_MAX_LEVELS = 20
"""Of brackets within brackets: far more than any setting has, far fewer than a stack holds."""


def _can_be_sent(key: SecretStr | None) -> SecretStr | None:
    """A key that fits into a header. One that is blank counts as unset."""
    if key is None or not key.get_secret_value():
        return None
    if not re.fullmatch("[ -~]+", key.get_secret_value()):
        raise ValueError("holds a character that no key has; give the key alone: one line, plain ASCII")
    return key


_Seconds = Annotated[FiniteFloat, Field(ge=0, le=_MAX_SECONDS)]
_SomeSeconds = Annotated[FiniteFloat, Field(gt=0, le=_MAX_SECONDS)]
_Concurrency = Annotated[int, Field(ge=1, le=100_000)]
_Key = Annotated[SecretStr | None, AfterValidator(_can_be_sent)]


def low_and_high(text: str) -> tuple[float, float]:
    """A range of delays in seconds, from LOW,HIGH. Raises `ValueError`, which says what to give."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, -1.0
    if not 0 <= low <= high <= _MAX_SECONDS:  # as no nan is
        raise ValueError(f"give two numbers of seconds, LOW,HIGH, such as 0.1,0.5, and at most {_MAX_SECONDS}")
    return low, high


class _OpenAI(BaseSettings):
    """The names that other programs use for the same two things."""

    model_config = SettingsConfigDict(**_READING)

    base_url: str | None = Field(None, validation_alias="OPENAI_BASE_URL")
    api_key: _Key = Field(None, validation_alias="OPENAI_API_KEY")


# Bounded, so that sums of costs in nano-USD fit into a database, and no exponent asks for gigabytes of digits.
_Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=12)]


class ModelPrice(BaseModel):
    """USD per million tokens."""

    model_config = ConfigDict(extra="forbid")

    input: _Usd
    output: _Usd


class Settings(BaseSettings):
    """Read once at start-up. Prefix `PLANWAVE_`; `OPENAI_API_KEY` and `OPENAI_BASE_URL` where ours are unset."""

    model_config = SettingsConfigDict(**_READING, env_prefix="PLANWAVE_")

    database_url: str = Field("sqlite:///./planwave.db", description="sqlite:///… or postgresql://…")
    database_pool_size: int = Field(
        10, ge=2, le=10_000, description="Connections to PostgreSQL per process, and two more"
    )
    wake: Literal["auto", "poll"] = Field("auto", description="poll: no LISTEN/NOTIFY, for PgBouncer")

    llm_base_url: str | None = None
    llm_api_key: _Key = None
    llm_model: str = Field("gpt-4o-mini", min_length=1, description="Answers tasks, and all else unless set below")
    llm_planner_model: str | None = None
    llm_synthesizer_model: str | None = None
    llm_max_concurrency: _Concurrency = Field(32, description="Model calls in flight per process")
    llm_timeout_seconds: _SomeSeconds = Field(300, description="Bound of a planning or synthesis call")
    llm_backoff_base_seconds: _Seconds = 0.5
    llm_backoff_cap_seconds: _Seconds = 30
    llm_max_answer_bytes: int = Field(4 * 1024 * 1024, ge=1024, le=1_000_000_000)
    llm_prices: Annotated[dict[str, ModelPrice], NoDecode] = Field(
        {}, description='USD per million tokens: {"gpt-4o-mini": {"input": 0.15, "output": 0.6}}'
    )
    llm_reserved_output_tokens: int = Field(
        1000,
        ge=0,
        le=1_000_000_000,
        description="What a call is expected to write, held within the budget until it has",
    )

    offline_seed: int = 0
    offline_delay_seconds: Annotated[tuple[float, float], NoDecode] = Field(
        (0.0, 0.0), description="LOW,HIGH: how long the offline model takes for an answer"
    )

    context_max_characters: int = Field(60_000, ge=100, le=100_000_000, description="Results shown in one request")

    tools: Annotated[list[str], NoDecode] = Field(
        ["*"], description="Names, or patterns of names, of the tools that goals may ask for: calculator,docs_*"
    )
    tool_modules: Annotated[list[str], NoDecode] = Field(
        [], description="Python modules whose tools are loaded: package.module or package.module:name"
    )
    tool_secrets: Annotated[dict[str, SecretStr], NoDecode] = Field(
        {}, description='What tools are given, by name: {"CRM_TOKEN": "..."}'
    )
    tool_timeout_seconds: _SomeSeconds = Field(60, description="Bound of one tool call")
    tool_max_concurrency: _Concurrency = Field(32, description="Tool calls in flight per process")
    tool_result_max_characters: int = Field(
        60_000, ge=1_000, le=100_000_000, description="What is kept of a tool's result"
    )
    http_get_private: Annotated[list[str], NoDecode] = Field(
        [], description="host:port pairs that http_get may fetch though they are not public"
    )
    mcp_servers: SecretStr = Field(
        SecretStr("{}"), description='MCP servers: {"docs": {"command": "...", "args": [...], "env": {...}}}'
    )

    worker_max_runs: int = Field(100, ge=1, le=20_000, description="Runs driven at once per process")
    lease_seconds: FiniteFloat = Field(
        15, ge=0.1, le=_MAX_SECONDS, description="A dead worker's runs are taken over after this"
    )
    poll_seconds: FiniteFloat = Field(
        1, ge=0.01, le=_MAX_SECONDS, description="How often a worker looks for due runs by itself"
    )
    drain_seconds: _Seconds = Field(10, description="Grace for calls in flight at shutdown")

    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _openais_where_ours_are_unset(self) -> "Settings":
        ours: dict[str, Any] = {"OPENAI_BASE_URL": self.llm_base_url, "OPENAI_API_KEY": self.llm_api_key}
        both = _OpenAI(**{name: value for name, value in ours.items() if value})
        self.llm_base_url, self.llm_api_key = both.base_url or None, both.api_key
        return self

    @field_validator("tools", "tool_modules", "http_get_private", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("tool_secrets", mode="before")
    @classmethod
    def _secrets_from_json(cls, value: object) -> object:
        return _object(value, like='{"CRM_TOKEN": "..."}') if isinstance(value, str) else value

    @field_validator("mcp_servers")
    @classmethod
    def _servers_in_json(cls, value: SecretStr) -> SecretStr:
        _object(value.get_secret_value(), like='{"docs": {"command": "..."}}')  # read where servers are known
        return value

    @field_validator("offline_delay_seconds", mode="before")
    @classmethod
    def _range_of_delays(cls, value: object) -> object:
        return low_and_high(value) if isinstance(value, str) else value

    @field_validator("llm_prices", mode="wrap")
    @classmethod
    def _prices_from_json(cls, value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
        if isinstance(value, str):
            # Numbers stay text until they are Decimals, or they would pass through a float.
            value = _object(value, like='{"gpt-4o-mini": {"input": 0.15, "output": 0.6}}', parse_float=str)
        try:
            return validated(value)
        except ValidationError as error:  # a setting's error tells its own name only, not that of the model
            wrong = (" ".join([*(f"{part}:" for part in each["loc"]), each["msg"]]) for each in error.errors())
            raise ValueError("; ".join(wrong)) from None

    @property
    def offline(self) -> bool:
        """Whether the built-in model answers: no endpoint and no key is set."""
        return self.llm_base_url is None and self.llm_api_key is None

    def model_for(self, seat: Seat, options: Mapping[str, Any]) -> str:
        """The name of the model that answers a seat of a run with these options."""
        usual = options["model"] or self.llm_model
        match seat:
            case _ if self.offline:
                return OFFLINE_MODEL
            case Seat.PLANNER | Seat.RECOVERY:
                return str(options["planner_model"] or self.llm_planner_model or usual)
            case Seat.SYNTHESIZER:
                return str(options["synthesizer_model"] or self.llm_synthesizer_model or usual)
            case _:
                return str(usual)

    def price_of(self, model: str) -> Price | None:
        """What a model takes; None where nobody has said. The offline model takes nothing."""
        if model == OFFLINE_MODEL:
            return Price(input_usd_per_million=Decimal(0), output_usd_per_million=Decimal(0))
        price = self.llm_prices.get(model)
        if price is None:
            return None
        return Price(input_usd_per_million=price.input, output_usd_per_million=price.output)


def _object(text: str, *, like: str, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """A setting's JSON. Raises `ValueError`, which quotes nothing of it and says what it should be like."""
    try:
        read = json.loads(text, parse_float=parse_float)
    except json.JSONDecodeError as error:  # whose own words quote nothing
        raise ValueError(f"not JSON: {error}; give {like}") from None
    except RecursionError:
        raise ValueError(f"nested too deeply; give {like}") from None
    except ValueError:
        raise ValueError(f"a number has too many digits; give {like}") from None
    if _is_deep(read, _MAX_LEVELS):
        raise ValueError(f"nested too deeply; give {like}")
    if not isinstance(read, dict):
        raise ValueError(f"not a dictionary in JSON; give {like}")  # noqa: TRY004 - pydantic hears of it as a ValueError
    return read


def _is_deep(value: object, levels: int) -> bool:
    """Whether brackets go deeper than this."""
    if not isinstance(value, dict | list):
        return False
    within = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(each, levels - 1) for each in within)
