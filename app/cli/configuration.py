"""Reads the settings for a command and says which model they mean."""

from pydantic import ValidationError

from app import logs
from app.domain.errors import ConfigurationError
from app.settings import Settings


def load_settings() -> Settings:
    """The settings; raises `ConfigurationError` naming each that cannot work, without its value: it may be a secret."""
    try:
        return Settings()
    except ValidationError as error:
        problems = (f"{_variable(problem['loc'])}: {_reason(problem['msg'])}" for problem in error.errors())
        raise ConfigurationError("; ".join(problems)) from None
    except UnicodeDecodeError:
        raise ConfigurationError(".env is not text in UTF-8; save it as that.") from None
    except OSError as error:
        raise ConfigurationError(f".env cannot be read: {error.strerror}.") from None


def configure_logs(settings: Settings) -> None:
    """For a process that stays: its log goes to stderr as the settings say."""
    logs.configure(level=settings.log_level, format=settings.log_format)


def answering_model(settings: Settings) -> str:
    """Which model answers, for a person."""
    if settings.offline:
        return "offline model (built in; no key set)"
    return f"{settings.llm_model} at {settings.llm_base_url or 'the OpenAI API'}"


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0])
    return name if name.isupper() else f"PLANWAVE_{name.upper()}"


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")
