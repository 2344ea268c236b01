"""Tool calls: shown with their attempts, counted, told of in events, and answered for by a person."""

from typing import Any

import httpx
import pytest

from app.api.services import Services
from app.domain.ids import TaskKey
from app.domain.status import AttemptStatus, CallStatus, Seat, TaskStatus, ToolCallStatus
from app.storage.changes import Changes
from tests.api.asking import Json, code_of, commit, get, new_run, places_of
from tests.api.reviewing import asked_call, run_with_call

A = TaskKey("0.a")
PLAN = {"tasks": [{"id": "a", "description": "Do it", "tools": ["mail"]}, {"id": "b", "description": "Do more"}]}
NEVER_SENT = {"kind": "unknown_tool", "message": "There is no such tool.", "retryable": True}
FAILED = {"kind": "tool_failed", "message": "Out of order.", "retryable": False, "may_have_acted": True}


def steps(changes: Changes) -> None:
    """Two attempts: one of two steps with three calls, of which one is refused, and one that has just asked again."""
    changes.task(A, TaskStatus.RUNNING)
    for attempt, calls in ((1, (3, 4)), (2, (7,))):
        changes.attempt_started(A, attempt, description="Do it", prompt_hash="0123456789abcdef")
        for number in calls:
            changes.call_opened(number, seat=Seat.EXECUTOR, model="scripted", try_number=1, task_key=A, attempt=attempt)
            changes.call_ended(number, CallStatus.ANSWERED)
    changes.tool_asked(asked_call(1, step=3, arguments='{"text": "Hi"}'), task_key=A)
    changes.tool_asked(
        asked_call(2, step=3, arguments='{"text', status=ToolCallStatus.REFUSED, error=NEVER_SENT), task_key=A
    )
    changes.tool_asked(asked_call(3, step=4), task_key=A)
    changes.tool_asked(asked_call(4, step=7, attempt=2), task_key=A)
    for number in (1, 3):
        changes.tool_called(number)
    changes.tool_ended(1, ToolCallStatus.RETURNED, result="sent")
    changes.tool_ended(3, ToolCallStatus.FAILED, error=FAILED)
    changes.attempt_ended(A, 1, AttemptStatus.FAILED, error=NEVER_SENT)


async def run_of_steps(client: httpx.AsyncClient, services: Services) -> Json:
    run = await new_run(client, plan=PLAN)
    await commit(services.database, run["id"], steps)
    return run


# --- shown


async def test_an_attempt_shows_the_calls_that_its_steps_asked_for(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await run_of_steps(client, services)

    first, second = (await get(client, f"{run['links']['tasks']}/0.a"))["attempts"]

    shown = [(call["number"], call["step"], call["status"]) for call in first["tool_calls"]]
    assert shown == [(1, 1, "returned"), (2, 1, "refused"), (3, 2, "failed")]
    assert [(call["number"], call["step"], call["status"]) for call in second["tool_calls"]] == [(4, 1, "asked")]
    call = first["tool_calls"][0]
    assert call == {
        "number": 1,
        "step": 1,
        "tool": "mail",
        "arguments": {"text": "Hi"},
        "side_effects": "once",
        "status": "returned",
        "result": "sent",
        "error": None,
        "asked_at": call["asked_at"],
        "started_at": call["asked_at"],
        "finished_at": call["asked_at"],
    }
    failed = first["tool_calls"][2]
    assert (failed["result"], failed["error"]) == (
        None,
        {"kind": "tool_failed", "message": "Out of order.", "retryable": False},
    )


async def test_only_calls_that_were_made_are_counted(client: httpx.AsyncClient, services: Services) -> None:
    run = await run_of_steps(client, services)

    attempts = (await get(client, f"{run['links']['tasks']}/0.a"))["attempts"]

    assert [attempt["usage"]["tool_calls"] for attempt in attempts] == [2, 0]
    refused, waiting = attempts[0]["tool_calls"][1], attempts[1]["tool_calls"][0]
    assert (refused["started_at"], refused["finished_at"] is None) == (None, False)
    assert (waiting["started_at"], waiting["finished_at"]) == (None, None)
    assert (await get(client, run["links"]["self"]))["usage"]["tool_calls"] == 2


async def test_generations_count_the_calls_that_their_steps_asked_for(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client, plan=PLAN)

    def say(changes: Changes) -> None:
        for number, generation in ((1, 0), (2, 1)):
            changes.call_opened(
                number, seat=Seat.EXECUTOR, model="scripted", try_number=1, task_key=A, attempt=1, generation=generation
            )
        for number, step in ((1, 1), (2, 2), (3, 1), (4, 2)):
            changes.tool_asked(asked_call(number, step=step), task_key=A)
        for number in (1, 2):
            changes.tool_called(number)

    await commit(services.database, run["id"], say)

    assert (await get(client, run["links"]["plan"]))["usage"]["tool_calls"] == 1
    assert [plan["usage"]["tool_calls"] for plan in (await get(client, run["links"]["plan"] + "s"))["data"]] == [1]
    assert (await get(client, run["links"]["self"]))["usage"]["tool_calls"] == 2


async def test_a_task_without_tools_has_no_calls(client: httpx.AsyncClient, services: Services) -> None:
    run = await run_of_steps(client, services)

    def say(changes: Changes) -> None:
        changes.attempt_started(TaskKey("0.b"), 1, description="Do more", prompt_hash="0123456789abcdef")

    await commit(services.database, run["id"], say)

    task = await get(client, f"{run['links']['tasks']}/0.b")
    assert (task["tools"], task["attempts"][0]["tool_calls"]) == ([], [])


async def test_lists_of_tasks_show_their_tools_and_no_calls(client: httpx.AsyncClient, services: Services) -> None:
    run = await run_of_steps(client, services)

    listed = (await get(client, run["links"]["tasks"]))["data"]
    included = (await get(client, run["links"]["self"], include="tasks"))["tasks"]

    assert [(task["tools"], task["attempts"]) for task in listed] == [(["mail"], None), ([], None)]
    assert [(task["tools"], task["attempts"]) for task in included] == [(["mail"], None), ([], None)]


DEEP = '{"a": ' * 40 + "1" + "}" * 40
SHOWN: dict[str, tuple[str, Any]] = {
    "an object": ('{"n": [1, 2.5, null, true]}', {"n": [1, 2.5, None, True]}),
    "no object": ("[1]", [1]),
    "line breaks as they are": ('{"text": "a\nb"}', {"text": "a\nb"}),
    "no JSON": ('{"text": ', '{"text": '),
    "nothing": ("", ""),
    "NaN": ('{"n": NaN}', '{"n": NaN}'),
    "infinity": ('{"n": 1e999}', '{"n": 1e999}'),
    "half a surrogate pair": ('{"text": "\\ud800"}', '{"text": "\\ud800"}'),
    "half a pair as a name": ('{"\\udfff": 1}', '{"\\udfff": 1}'),
    "a zero byte": ('{"text": "\\u0000"}', {"text": "\0"}),
    "too deep": (DEEP, DEEP),
    "far too deep": ("[" * 100_000, "[" * 100_000),
    "too many digits": ('{"n": ' + "9" * 5_000 + "}", '{"n": ' + "9" * 5_000 + "}"),
}


@pytest.mark.parametrize(("text", "shown"), SHOWN.values(), ids=SHOWN)
async def test_arguments_are_shown_as_json_where_an_answer_can_carry_it(
    client: httpx.AsyncClient, services: Services, text: str, shown: Any
) -> None:
    run = await new_run(client, plan=PLAN)

    def say(changes: Changes) -> None:
        changes.attempt_started(A, 1, description="Do it", prompt_hash="0123456789abcdef")
        changes.tool_asked(asked_call(1, arguments=text), task_key=A)

    await commit(services.database, run["id"], say)

    (attempt,) = (await get(client, f"{run['links']['tasks']}/0.a"))["attempts"]
    assert attempt["tool_calls"][0]["arguments"] == shown


# --- reviews


async def test_a_review_of_a_call_shows_the_call_in_its_question(client: httpx.AsyncClient, services: Services) -> None:
    run, path = await run_with_call(client, services.database)

    review = await get(client, path)

    assert (review["kind"], review["task_key"], review["allowed_answers"]) == (
        "tool_call",
        "0.a",
        ["approve", "reject"],
    )
    assert review["question"]["tool_call"] == {"number": 1, "tool": "mail", "outcome_unknown": False}
    assert "tool_call" not in review
    assert (await get(client, run["links"]["self"]))["open_reviews"] == 1


TAKEN: dict[str, tuple[bool, Json]] = {
    "approve": (False, {"decision": "approve"}),
    "reject": (False, {"decision": "reject"}),
    "reject with words": (False, {"decision": "reject", "instructions": "Write to the test list."}),
    "retry": (True, {"decision": "retry"}),
    "supply text": (True, {"decision": "supply", "result": "It was sent."}),
    "supply JSON": (True, {"decision": "supply", "result": {"sent": False}}),
    "fail": (True, {"decision": "fail"}),
}


@pytest.mark.parametrize(("lost", "answer"), TAKEN.values(), ids=TAKEN)
async def test_every_decision_about_a_call_is_kept_with_what_was_given(
    client: httpx.AsyncClient, services: Services, lost: bool, answer: Json
) -> None:
    run, path = await run_with_call(client, services.database, lost=lost)

    response = await client.post(path, json=answer)

    assert response.status_code == 200, response.text
    assert response.json()["answer"] == answer
    now = await get(client, run["links"]["self"])
    assert (now["status"], now["open_reviews"]) == ("queued", 0)


# Whether the call may have acted, the answer, the problem's code and its place.
REFUSED: dict[str, tuple[bool, Json, str, str]] = {
    "retry instead of approve": (False, {"decision": "retry"}, "not_allowed", "/decision"),
    "a result instead of an approval": (False, {"decision": "supply", "result": 1}, "not_allowed", "/decision"),
    "approve of what may have acted": (True, {"decision": "approve"}, "not_allowed", "/decision"),
    "skip": (True, {"decision": "skip"}, "not_allowed", "/decision"),
    "other words to retry": (True, {"decision": "retry", "description": "Mail"}, "unknown_field", "/description"),
    "words to approve": (False, {"decision": "approve", "instructions": "x"}, "unknown_field", "/instructions"),
    "other arguments to approve": (False, {"decision": "approve", "arguments": {}}, "unknown_field", "/arguments"),
    "words to fail": (True, {"decision": "fail", "instructions": "x"}, "unknown_field", "/instructions"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
async def test_what_does_not_belong_to_a_call_is_refused(
    client: httpx.AsyncClient, services: Services, case: tuple[bool, Json, str, str]
) -> None:
    lost, answer, code, place = case
    _, path = await run_with_call(client, services.database, lost=lost)

    response = await client.post(path, json=answer)

    assert code_of(response, 422) == code
    assert places_of(response) == [(place, code)]
    assert (await get(client, path))["answer"] is None


async def test_the_result_of_a_call_need_not_match_the_schema_of_its_tasks_result(
    client: httpx.AsyncClient, services: Services
) -> None:
    task = {"id": "a", "description": "Do it", "tools": ["mail"], "output_schema": {"type": "object"}}
    _, path = await run_with_call(client, services.database, lost=True, plan={"tasks": [task]})

    response = await client.post(path, json={"decision": "supply", "result": "It was sent."})

    assert response.status_code == 200, response.text
