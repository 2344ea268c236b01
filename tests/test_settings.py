"""Settings: where they come from, which wins, and what is refused."""

import os
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.cli.configuration import load_settings
from app.domain.errors import ConfigurationError
from app.domain.usage import Price
from app.settings import OFFLINE_MODEL, Settings, low_and_high
from app.storage.engines import parse_url


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing set, and no `.env` but the test's own."""
    for name in [name for name in os.environ if name.startswith(("PLANWAVE_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal() -> str:
    """What `planwave` says of the settings before it ends with exit code 2."""
    with pytest.raises(ConfigurationError) as refused:
        load_settings()
    return str(refused.value)


def key_of(settings: Settings) -> str | None:
    return None if settings.llm_api_key is None else settings.llm_api_key.get_secret_value()


def test_with_nothing_set_the_offline_model_answers() -> None:
    settings = Settings()
    assert settings.offline
    assert settings.database_url == "sqlite:///./planwave.db"


@pytest.mark.parametrize("name", ["PLANWAVE_LLM_API_KEY", "PLANWAVE_LLM_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"])
def test_a_key_or_an_endpoint_is_enough_to_leave_the_offline_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1/v1")
    assert not Settings().offline


def test_openais_names_are_honoured_where_ours_are_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://theirs/v1")
    settings = Settings()
    assert (key_of(settings), settings.llm_base_url) == ("theirs", "http://theirs/v1")


def test_our_names_win_over_openais(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix, value in (("OPENAI_", "theirs"), ("PLANWAVE_LLM_", "ours")):
        monkeypatch.setenv(f"{prefix}API_KEY", value)
        monkeypatch.setenv(f"{prefix}BASE_URL", f"http://{value}/v1")
    settings = Settings()
    assert (key_of(settings), settings.llm_base_url) == ("ours", "http://ours/v1")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANWAVE_LLM_API_KEY", "")
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    settings = Settings()
    assert (key_of(settings), settings.llm_base_url) == ("theirs", None)


def test_settings_are_read_from_a_dotenv_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PLANWAVE_LLM_MODEL=from-file\nOPENAI_API_KEY=theirs\nUNRELATED=1\n")
    settings = Settings()
    assert (settings.llm_model, key_of(settings)) == ("from-file", "theirs")


def test_the_environment_wins_over_the_dotenv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PLANWAVE_LLM_MODEL=from-file\n")
    monkeypatch.setenv("PLANWAVE_LLM_MODEL", "from-environment")
    assert Settings().llm_model == "from-environment"


def test_our_name_in_the_dotenv_file_wins_over_openais_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("PLANWAVE_LLM_API_KEY=ours\nPLANWAVE_LLM_BASE_URL=http://ours/v1\n")
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://theirs/v1")
    settings = Settings()
    assert (key_of(settings), settings.llm_base_url) == ("ours", "http://ours/v1")


def test_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    settings = Settings()
    assert "sk-very-secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_white_space_around_a_key_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys come out of files that end with a line break; no header can carry one."""
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
    assert key_of(Settings()) == "sk-secret"


@pytest.mark.parametrize("name", ["PLANWAVE_LLM_API_KEY", "OPENAI_API_KEY"])
@pytest.mark.parametrize("within", ["\n", "\r", "\t", "\x1b", "\x7f", "\x80", "é", "\u200b"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(
    name: str, within: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"sk-s3cret{within}s3cret")
    said = refusal()
    assert said.startswith(f"{name}: holds a character that no key has")
    assert "s3cret" not in said
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "s3cret" not in str(refused.value)


def test_openais_key_is_not_looked_at_where_ours_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "the\nirs")
    monkeypatch.setenv("PLANWAVE_LLM_API_KEY", "ours")
    assert key_of(Settings()) == "ours"


@pytest.mark.parametrize("name", ["PLANWAVE_LLM_API_KEY", "PLANWAVE_LLM_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"])
def test_a_blank_key_or_endpoint_counts_as_unset(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, " \n")
    assert Settings().offline


def test_names_without_a_prefix_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "another's")
    monkeypatch.setenv("BASE_URL", "http://another/v1")
    assert Settings().offline


def test_a_dotenv_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PLANWAVE_LLM_MODEL=\xff\n")
    assert refusal().startswith(".env is not text in UTF-8")


def test_the_offline_models_delay_is_low_and_high(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANWAVE_OFFLINE_DELAY_SECONDS", "0.5,2")
    assert Settings().offline_delay_seconds == (0.5, 2.0)


def test_the_offline_model_may_take_the_same_time_for_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANWAVE_OFFLINE_DELAY_SECONDS", "2,2")
    assert Settings().offline_delay_seconds == (2.0, 2.0)


@pytest.mark.parametrize("delay", ["1", "1,2,3", "a,b", "nan,nan", "0,nan", "0,inf", "5,1", "-5,-1", "0,1e300"])
def test_a_delay_that_is_no_range_is_refused_in_the_environment_as_on_the_command_line(
    delay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="LOW,HIGH, such as") as refused:
        low_and_high(delay)
    monkeypatch.setenv("PLANWAVE_OFFLINE_DELAY_SECONDS", delay)
    assert refusal() == f"PLANWAVE_OFFLINE_DELAY_SECONDS: {refused.value}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_POOL_SIZE", "1"),
        ("WAKE", "sometimes"),
        ("LLM_MAX_CONCURRENCY", "0"),
        ("LLM_MAX_CONCURRENCY", "many"),
        ("LLM_TIMEOUT_SECONDS", "0"),
        ("LLM_TIMEOUT_SECONDS", "nan"),
        ("LLM_BACKOFF_BASE_SECONDS", "-1"),
        ("LLM_BACKOFF_CAP_SECONDS", "-1"),
        ("LLM_MAX_ANSWER_BYTES", "1023"),
        ("LLM_RESERVED_OUTPUT_TOKENS", "-1"),
        ("OFFLINE_DELAY_SECONDS", "1"),
        ("OFFLINE_DELAY_SECONDS", "1,2,3"),
        ("OFFLINE_DELAY_SECONDS", "a,b"),
        ("CONTEXT_MAX_CHARACTERS", "99"),
        ("WORKER_MAX_RUNS", "0"),
        ("LEASE_SECONDS", "0"),
        ("LEASE_SECONDS", "inf"),
        ("POLL_SECONDS", "0"),
        ("POLL_SECONDS", "inf"),
        ("DRAIN_SECONDS", "-1"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_what_cannot_work_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PLANWAVE_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


SECONDS = [name for name in Settings.model_fields if name.endswith("_seconds") and not name.startswith("offline")]
NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation is int and name != "offline_seed"]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e10", "1e300"])
@pytest.mark.parametrize("name", SECONDS)
def test_a_time_that_no_clock_can_count_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PLANWAVE_{name.upper()}", value)
    assert refusal().startswith(f"PLANWAVE_{name.upper()}: Input should be ")


@pytest.mark.parametrize("name", SECONDS)
def test_eleven_days_are_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PLANWAVE_{name.upper()}", "1e6")
    assert getattr(Settings(), name) == 1_000_000


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_all_reason_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"PLANWAVE_{name.upper()}", "10000000000")
    assert refusal().startswith(f"PLANWAVE_{name.upper()}: Input should be less than or equal to ")


# --- JSON


@pytest.mark.parametrize("name", ["PLANWAVE_LLM_PRICES", "PLANWAVE_TOOL_SECRETS", "PLANWAVE_MCP_SERVERS"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[" * 100_000, "nested too deeply; give {"),
        ('{"s3cret": ' * 100_000, "nested too deeply; give {"),
        ("[" * 21 + "]" * 21, "nested too deeply; give {"),
        ('{"s3cret": ' + "9" * 5_000 + "}", "a number has too many digits; give {"),
        ('["s3cret"]', "not a dictionary in JSON; give {"),
        ('{"s3cret": ', "not JSON: Expecting value: line 1 column "),
    ],
    ids=["brackets", "braces", "21 levels", "digits", "a list", "half"],
)
def test_json_that_cannot_be_read_is_named_and_not_shown(
    name: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    said = refusal()
    assert said.startswith(f"{name}: {problem}")
    assert "s3cret" not in said


def test_a_servers_settings_may_go_as_deep_as_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = '{"mcpServers": {"docs": {"command": "docs", "side_effects": {"write": "once"}}}}'
    monkeypatch.setenv("PLANWAVE_MCP_SERVERS", servers)
    assert load_settings().mcp_servers.get_secret_value() == servers


# --- the database's URL


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///x.db?timeout=abc",
        "sqlite:///x.db?timeout=5",
        "sqlite:///x.db?mode=ro",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite://host/x.db",
        "sqlite://me:s3cret@/x.db",
    ],
)
def test_sqlite_takes_a_path_and_nothing_else(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PLANWAVE_DATABASE_URL: SQLite takes a path") as refused:
        parse_url(url)
    assert "s3cret" not in str(refused.value)


# --- prices


def test_prices_are_read_as_the_decimals_that_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANWAVE_LLM_PRICES", '{"gpt-4.1": {"input": 2, "output": 0.600000000001}}')
    price = Price(input_usd_per_million=Decimal(2), output_usd_per_million=Decimal("0.600000000001"))
    assert Settings().price_of("gpt-4.1") == price


def test_nobody_has_said_what_other_models_take() -> None:
    assert Settings().llm_prices == {}
    assert Settings().price_of("gpt-4.1") is None


def test_the_offline_model_takes_nothing() -> None:
    nothing = Price(input_usd_per_million=Decimal(0), output_usd_per_million=Decimal(0))
    assert Settings().price_of(OFFLINE_MODEL) == nothing


@pytest.mark.parametrize(
    ("prices", "problem"),
    [
        ("gpt-4.1=2", "not JSON"),
        ("[]", "dictionary"),
        ('{"gpt-4.1": 2}', "gpt-4.1: Input should be a valid dictionary"),
        ('{"gpt-4.1": {"input": 2}}', "gpt-4.1: output: Field required"),
        ('{"gpt-4.1": {"input": 2, "output": 1, "cached": 1}}', "gpt-4.1: cached: Extra inputs"),
        ('{"gpt-4.1": {"input": -0.1, "output": 1}}', "gpt-4.1: input: Input should be greater than or equal to 0"),
        ('{"gpt-4.1": {"input": NaN, "output": 1}}', "gpt-4.1: input: Input should be a finite number"),
        ('{"gpt-4.1": {"input": 1, "output": Infinity}}', "gpt-4.1: output: Input should be a finite number"),
        ('{"gpt-4.1": {"input": true, "output": 1}}', "gpt-4.1: input: Decimal input should be"),
        ('{"gpt-4.1": {"input": 1000001, "output": 1}}', "gpt-4.1: input: Input should be less than or equal"),
        ('{"gpt-4.1": {"input": 1e-13, "output": 1}}', "gpt-4.1: input: Decimal input should have no more than 12"),
    ],
)
def test_a_price_that_cannot_be_meant_is_refused_by_name(
    prices: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANWAVE_LLM_PRICES", prices)
    with pytest.raises(ValidationError) as refused:
        Settings()
    (error,) = refused.value.errors()
    assert error["loc"] == ("llm_prices",)
    assert problem in error["msg"]


@pytest.mark.parametrize("value", ['{"A": "s3cret", ', '["s3cret"]', '{"A": ["s3cret"]}', '"s3cret"'])
def test_secrets_of_tools_that_cannot_be_read_are_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("PLANWAVE_TOOL_SECRETS", value)
    with pytest.raises(ValidationError) as refused:
        Settings(_env_file=None)
    words = [(error["loc"], error["msg"]) for error in refused.value.errors(include_input=False)]
    assert words
    assert all("s3cret" not in str(word) for word in words)


def test_secrets_of_tools_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANWAVE_TOOL_SECRETS", '{"A": "b"}')
    settings = Settings(_env_file=None)
    assert settings.tool_secrets["A"].get_secret_value() == "b"
    assert "'b'" not in repr(settings)
