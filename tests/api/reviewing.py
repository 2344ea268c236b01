"""How the API's tests have a run ask something of a person."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx

from app.domain.ids import TaskKey
from app.domain.status import Decision, ReviewKind, RunStatus, SideEffects, TaskStatus, ToolCallStatus
from app.domain.transcript import AskedCall
from app.storage.changes import Changes
from app.storage.database import Database, new_id
from tests.api.asking import Json, chain, commit, new_run, parked

OF_A_PLAN = [Decision.APPROVE, Decision.EDIT, Decision.REJECT]
OF_A_FAILURE = [Decision.RETRY, Decision.SKIP, Decision.REPLAN, Decision.SUPPLY, Decision.FAIL]


def asked_of_plan(review_id: UUID, generation: int = 0) -> Callable[[Changes], None]:
    return lambda changes: changes.review_opened(
        review_id,
        ReviewKind.PLAN,
        question={"text": "May it be carried out?"},
        allowed_answers=OF_A_PLAN,
        generation=generation,
    )


def asked_of_task(review_id: UUID, key: str) -> Callable[[Changes], None]:
    def say(changes: Changes) -> None:
        changes.task(TaskKey(key), TaskStatus.AWAITING_REVIEW)
        changes.review_opened(
            review_id,
            ReviewKind.FAILURE,
            question={"text": "What is to become of it?"},
            allowed_answers=OF_A_FAILURE,
            task_key=TaskKey(key),
        )

    return say


OF_A_CALL = [Decision.APPROVE, Decision.REJECT]
OF_A_LOST_CALL = [Decision.RETRY, Decision.SUPPLY, Decision.FAIL]


def asked_of_call(review_id: UUID, key: str, *, lost: bool = False) -> Callable[[Changes], None]:
    """A task has asked for its first tool call, and a person is to say first whether it is made."""

    def say(changes: Changes) -> None:
        changes.tool_asked(
            asked_call(1, arguments='{"text": "Hi"}', status=ToolCallStatus.AWAITING_REVIEW), task_key=TaskKey(key)
        )
        changes.task(TaskKey(key), TaskStatus.AWAITING_REVIEW)
        changes.review_opened(
            review_id,
            ReviewKind.TOOL_CALL,
            question={"text": "May it be called?", "tool_call": {"number": 1, "tool": "mail", "outcome_unknown": lost}},
            allowed_answers=OF_A_LOST_CALL if lost else OF_A_CALL,
            task_key=TaskKey(key),
            tool_call=1,
        )

    return say


def asked_call(number: int, *, step: int = 1, attempt: int = 1, arguments: str = "{}", **more: Any) -> AskedCall:
    """A call of `mail` as a model asks for it."""
    return AskedCall(
        number=number,
        step=step,
        attempt=attempt,
        position=number,
        call_id=f"call{number}",
        tool="mail",
        arguments=arguments,
        key=f"key{number}",
        side_effects=SideEffects.ONCE,
        **{"status": ToolCallStatus.ASKED, **more},
    )


async def run_with_call(
    client: httpx.AsyncClient, database: Database, *, lost: bool = False, **body: Any
) -> tuple[Json, str]:
    """A run that waits for what a person says of a call of its task `a`; and the path of that review."""
    task = {"id": "a", "description": "Do it", "tools": ["mail"]}
    run, review_id = await new_run(client, **{"plan": {"tasks": [task]}, **body}), new_id()
    await commit(database, run["id"], asked_of_call(review_id, "0.a", lost=lost))
    await commit(database, run["id"], parked(RunStatus.AWAITING_REVIEW))
    return run, f"{run['links']['reviews']}/{review_id}"


async def waiting_run(
    client: httpx.AsyncClient, database: Database, *, about: str | None = None, **body: Any
) -> tuple[Json, str]:
    """A run that waits for the answer to its review, of a task or of its plan; and the path of that review."""
    run, review_id = await new_run(client, **{"plan": chain("a", "b"), **body}), new_id()
    await commit(database, run["id"], asked_of_plan(review_id) if about is None else asked_of_task(review_id, about))
    await commit(database, run["id"], parked(RunStatus.AWAITING_REVIEW))
    return run, f"{run['links']['reviews']}/{review_id}"
