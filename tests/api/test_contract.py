"""Schemathesis against a served app: what the OpenAPI document allows is taken, what it forbids is refused."""

import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import schemathesis
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance

from app.api.routes import create_api
from app.api.services import Services
from app.api.watch import RunWatch
from app.settings import Settings
from app.storage.database import Database
from app.tools.calculator import calculator
from app.tools.read_result import read_result
from app.tools.toolbox import Toolbox
from tests.databases import Databases
from tests.service_process import free_port


@pytest.fixture(scope="module")
def served(databases: Databases) -> Iterator[str]:
    """The URL of an app on SQLite, in a thread with a loop of its own: the tests here are not coroutines."""
    with databases.fresh("sqlite") as database_url:
        database = Database(database_url)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            yield
            await database.close()

        app = create_api(_wired(database), lifespan=lifespan)
        server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_config=None))
        thread = threading.Thread(target=server.run)
        thread.start()
        end = time.monotonic() + 60
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.config.port}"
        server.should_exit = True
        thread.join()


def _wired(database: Database) -> Services:
    return Services(
        database=database, settings=Settings(), watch=RunWatch(database), toolbox=Toolbox([calculator, read_result])
    )


# NUL in any text is refused: a rule that the schemas do not repeat at every string.
_CONFIG = schemathesis.Config.from_dict({"generation": {"allow-x00": False}})
schema = schemathesis.openapi.from_dict(
    create_api(_wired(Database("sqlite:///never-opened.db"))).openapi(), config=_CONFIG
)


BEYOND_JSON_SCHEMA = {
    "invalid_cursor",
    "plan_invalid",
    "invalid_schema",
    "no_price",
    "unknown_tool",
    "budget_too_small",
    "idempotency_key_reused",
    "run_deleted",
}
"""Why a request that fits its schema may be refused all the same."""
CONTRADICTIONS = {("/options/min_tasks", "out_of_range"), ("/options/output_schema", "not_allowed")}
"""And where two of its options cannot go together."""


def refused_only_for_what_no_schema_can_say(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case[Any]
) -> None:
    """Stands for `positive_data_acceptance`, which knows statuses only."""
    fits = case.meta is not None and case.meta.generation.mode == schemathesis.GenerationMode.POSITIVE
    if fits and response.status_code in (400, 410, 413, 415, 422):
        problem = response.json()
        crossed = {(error["pointer"], error["code"]) for error in problem["errors"]}
        beyond = {(pointer, code) for pointer, code in crossed if code in BEYOND_JSON_SCHEMA or _is_huge(pointer, code)}
        assert problem["code"] in BEYOND_JSON_SCHEMA or (crossed and crossed <= CONTRADICTIONS | beyond), problem


def _is_huge(pointer: str, code: str) -> bool:
    """Whether it is a number that no database stores, in a schema of the client's own."""
    return code == "out_of_range" and "/output_schema/" in pointer


@schema.parametrize()
@settings(max_examples=10, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_app_keeps_its_contract(case: schemathesis.Case[Any], served: str) -> None:
    case.call_and_validate(
        base_url=served,
        additional_checks=[refused_only_for_what_no_schema_can_say],
        excluded_checks=[positive_data_acceptance],
    )
