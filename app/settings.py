"""Every setting, from the environment or `.env`, with its default and its unit in its name."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
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


_READING = SettingsConfigDict(env_file=".env", extra="ignore", env_ignore_empty=True, str_strip_whitespace=True)


class _OpenAI(BaseSettings):
    """The names that other programs use for the same two things."""

    model_config = SettingsConfigDict(**_READING, env_prefix="OPENAI_")

    base_url: str | None = None
    api_key: SecretStr | None = None


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
    database_pool_size: int = Field(10, ge=2, description="Connections to PostgreSQL per process")
    wake: Literal["auto", "poll"] = Field("auto", description="poll: no LISTEN/NOTIFY, for PgBouncer")

    llm_base_url: str | None = None
    llm_api_key: SecretStr | None = None
    llm_model: str = Field("gpt-4o-mini", description="Answers tasks, and all else unless set below")
    llm_planner_model: str | None = None
    llm_synthesizer_model: str | None = None
    llm_max_concurrency: int = Field(32, ge=1, description="Model calls in flight per process")
    llm_timeout_seconds: FiniteFloat = Field(300, gt=0, description="Bound of a planning or synthesis call")
    llm_backoff_base_seconds: FiniteFloat = Field(0.5, ge=0)
    llm_backoff_cap_seconds: FiniteFloat = Field(30, ge=0)
    llm_max_answer_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    llm_prices: Annotated[dict[str, ModelPrice], NoDecode] = Field(
        {}, description='USD per million tokens: {"gpt-4o-mini": {"input": 0.15, "output": 0.6}}'
    )
    llm_reserved_output_tokens: int = Field(
        1000, ge=0, description="What a call is expected to write, held within the budget until it has"
    )

    offline_seed: int = 0
    offline_delay_seconds: Annotated[tuple[float, float], NoDecode] = Field(
        (0.0, 0.0), description="LOW,HIGH: how long the offline model takes for an answer"
    )

    context_max_characters: int = Field(60_000, ge=100, description="Results shown in one request")

    tools: Annotated[list[str], NoDecode] = Field(
        ["*"], description="Names, or patterns of names, of the tools that goals may ask for: calculator,docs_*"
    )
    tool_modules: Annotated[list[str], NoDecode] = Field(
        [], description="Python modules whose tools are loaded: package.module or package.module:name"
    )
    tool_secrets: Annotated[dict[str, SecretStr], NoDecode] = Field(
        {}, description='What tools are given, by name: {"CRM_TOKEN": "..."}'
    )
    tool_timeout_seconds: FiniteFloat = Field(60, gt=0, description="Bound of one tool call")
    tool_max_concurrency: int = Field(32, ge=1, description="Tool calls in flight per process")
    tool_result_max_characters: int = Field(60_000, ge=1_000, description="What is kept of a tool's result")
    http_get_private: Annotated[list[str], NoDecode] = Field(
        [], description="host:port pairs that http_get may fetch though they are not public"
    )
    mcp_servers: SecretStr = Field(
        SecretStr("{}"), description='MCP servers: {"docs": {"command": "...", "args": [...], "env": {...}}}'
    )

    worker_max_runs: int = Field(100, ge=1, le=20_000, description="Runs driven at once per process")
    lease_seconds: FiniteFloat = Field(15, gt=0, description="A dead worker's runs are taken over after this")
    poll_seconds: FiniteFloat = Field(1, gt=0, description="How often a worker looks for due runs by itself")
    drain_seconds: FiniteFloat = Field(10, ge=0, description="Grace for calls in flight at shutdown")

    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _openais_where_ours_are_unset(self) -> "Settings":
        theirs = _OpenAI()
        self.llm_base_url = self.llm_base_url or theirs.base_url
        self.llm_api_key = self.llm_api_key or theirs.api_key
        return self

    @field_validator("tools", "tool_modules", "http_get_private", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("tool_secrets", mode="before")
    @classmethod
    def _secrets_from_json(cls, value: object) -> object:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError as error:  # whose own words quote nothing
            raise ValueError(f"not JSON: {error}") from None

    @field_validator("offline_delay_seconds", mode="before")
    @classmethod
    def _low_and_high(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("llm_prices", mode="wrap")
    @classmethod
    def _prices_from_json(cls, value: Any, validated: ValidatorFunctionWrapHandler) -> Any:
        try:
            # Numbers stay text until they are Decimals, or they would pass through a float.
            return validated(json.loads(value, parse_float=str) if isinstance(value, str) else value)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error}") from None
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
