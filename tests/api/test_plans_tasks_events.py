"""What a run planned, what it does, and what happened to it."""

from typing import Any

import httpx
import pytest

from app.api.services import Services
from app.domain.generation import Carried, next_plan
from app.domain.ids import TaskKey
from app.domain.plan import PlannedTask
from app.domain.status import CallStatus, PlanReason, RunStatus, Seat, TaskStatus
from app.domain.usage import Usage
from app.storage.changes import Changes
from tests.api.asking import Json, attempt_spoiled, chain, code_of, commit, end, get, new_run


async def test_before_there_is_a_plan_the_client_is_asked_to_come_back(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    response = await client.get(run["links"]["plan"])

    assert code_of(response, 404) == "plan_not_ready"
    assert response.headers["retry-after"] == "1"


async def test_a_run_that_ended_without_a_plan_has_none(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client)
    await commit(services.database, run["id"], end(RunStatus.FAILED))

    response = await client.get(run["links"]["plan"])

    assert code_of(response, 404) == "plan_not_found"
    assert "retry-after" not in response.headers


def _replanned(generation: int) -> Any:
    tasks = [PlannedTask(id="a", description="Anew")]
    plan = next_plan(tasks, PlanReason.TASK_FAILED, generation=generation, position=10 * generation, carried={})
    return lambda changes: changes.plans.append(plan)


async def test_the_newest_generation_is_shown_unless_another_is_named(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client, plan=chain("a", "b"))
    await commit(services.database, run["id"], _replanned(1))

    assert (await get(client, run["links"]["plan"]))["generation"] == 1
    assert (await get(client, run["links"]["plan"], generation=0))["added"] == ["0.a", "0.b"]
    assert code_of(await client.get(run["links"]["plan"], params={"generation": 2}), 404) == "plan_not_found"


async def test_all_generations_are_listed_oldest_first(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, plan=chain("a", "b"))
    await commit(services.database, run["id"], _replanned(1))

    first = await get(client, run["links"]["plan"] + "s", limit=1)
    second = await get(client, run["links"]["plan"] + "s", limit=1, cursor=first["next_cursor"])

    assert [plan["reason"] for page in (first, second) for plan in page["data"]] == ["client", "task_failed"]
    assert [plan["waves"] for page in (first, second) for plan in page["data"]] == [[["0.a"], ["0.b"]], [["1.a"]]]
    assert (first["has_more"], second["has_more"]) == (True, False)


async def replanned_run(client: httpx.AsyncClient, services: Services) -> Json:
    """Of a, b, c the second failed and the third was superseded; generation 1 has two tasks, one after what goes on."""
    tasks = [{"id": "a", "description": "Do a"}, {"id": "b", "description": "Do b"}]
    plan = {"tasks": [*tasks, {"id": "c", "description": "Do c", "depends_on": ["a", "b"]}]}
    run = await new_run(client, plan=plan)

    def say(changes: Changes) -> None:
        changes.task(TaskKey("0.a"), TaskStatus.SUCCEEDED, result="long")
        changes.task(TaskKey("0.b"), TaskStatus.FAILED)
        changes.task(TaskKey("0.c"), TaskStatus.SUPERSEDED)
        plan = next_plan(
            [
                PlannedTask(id="b", description="Do b otherwise"),
                PlannedTask(id="c", description="Do c", depends_on=("0.a", "b")),
            ],
            PlanReason.TASK_FAILED,
            generation=1,
            position=3,
            carried={TaskKey("0.a"): Carried(wave=1, depends_on=())},
            failed=[TaskKey("0.b")],
            superseded=[TaskKey("0.c")],
        )
        changes.plans.append(plan)

    await commit(services.database, run["id"], say)
    return run


async def test_a_generation_shows_what_it_adds_and_what_it_carries(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await replanned_run(client, services)

    plan = await get(client, run["links"]["plan"])

    assert (plan["reason"], plan["parent_generation"], plan["failed_task_keys"]) == ("task_failed", 0, ["0.b"])
    assert (plan["added"], plan["carried"], plan["superseded"]) == (["1.b", "1.c"], ["0.a"], ["0.c"])
    assert [(task["key"], task["status"], task["result"]) for task in plan["tasks"]] == [
        ("0.a", "succeeded", None),
        ("1.b", "pending", None),
        ("1.c", "pending", None),
    ]
    assert plan["tasks"][2]["depends_on"] == ["0.a", "1.b"]
    assert plan["waves"] == [["0.a", "1.b"], ["1.c"]]
    assert plan["critical_path"] == ["0.a", "1.c"]


async def test_a_list_of_plans_shows_each_as_it_is_shown_alone(client: httpx.AsyncClient, services: Services) -> None:
    run = await replanned_run(client, services)

    plans = (await get(client, run["links"]["plan"] + "s"))["data"]

    assert plans == [await get(client, run["links"]["plan"], generation=n) for n in (0, 1)]
    assert [task["key"] for task in plans[0]["tasks"]] == ["0.a", "0.b", "0.c"]


async def test_a_run_with_tasks_comes_with_the_newest_generation_and_what_it_carries(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await replanned_run(client, services)

    found = await get(client, run["links"]["self"], include="tasks")

    assert [task["key"] for task in found["tasks"]] == ["0.a", "1.b", "1.c"]
    assert found["tasks_truncated"] is False


async def test_odd_keys_are_carried_too(client: httpx.AsyncClient, services: Services) -> None:
    odd = ['"', "a'b", "\\", "ü ß", "\U0001f600", "%", "[0]"]
    run = await new_run(client, plan={"tasks": [{"id": one, "description": "Do it"} for one in odd]})

    def say(changes: Changes) -> None:
        plan = next_plan(
            [PlannedTask(id="x", description="Anew")],
            PlanReason.REQUESTED,
            generation=1,
            position=len(odd),
            carried={TaskKey(f"0.{one}"): Carried(wave=1, depends_on=()) for one in odd},
        )
        changes.plans.append(plan)

    await commit(services.database, run["id"], say)

    plan = await get(client, run["links"]["plan"])
    assert [task["key"] for task in plan["tasks"]] == [*(f"0.{one}" for one in odd), "1.x"]


async def test_what_the_generations_used_adds_up_to_what_the_run_used(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await replanned_run(client, services)

    def say(changes: Changes) -> None:
        spent = [(0, 5, 3, 1_500), (0, 7, 0, None), (1, 11, 13, 333_333_333), (1, 0, 0, 7)]
        for number, (generation, read, written, cost) in enumerate(spent, start=1):
            changes.call_opened(number, seat=Seat.EXECUTOR, model="scripted", try_number=1, generation=generation)
            usage = Usage(input_tokens=read, output_tokens=written)
            changes.call_ended(number, CallStatus.ANSWERED, usage=usage, cost_nano_usd=cost)
        changes.call_opened(5, seat=Seat.EXECUTOR, model="scripted", try_number=1, generation=1)

    await commit(services.database, run["id"], say)

    whole = (await get(client, run["links"]["self"]))["usage"]
    first, second = [plan["usage"] for plan in (await get(client, run["links"]["plan"] + "s"))["data"]]
    assert first == {"llm_calls": 2, "tool_calls": 0, "input_tokens": 12, "output_tokens": 3, "cost_usd": 0.0000015}
    assert second == {"llm_calls": 3, "tool_calls": 0, "input_tokens": 11, "output_tokens": 13, "cost_usd": 0.33333334}
    assert whole == {"llm_calls": 5, "tool_calls": 0, "input_tokens": 23, "output_tokens": 16, "cost_usd": 0.33333484}


async def test_a_plan_is_drawn_in_mermaid(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, plan=chain("a", "b"))
    await commit(services.database, run["id"], lambda c: c.task(TaskKey("0.a"), TaskStatus.SUCCEEDED, result="x"))

    response = await client.get(run["links"]["plan"], params={"format": "mermaid"})

    assert response.headers["content-type"].startswith("text/vnd.mermaid")
    assert response.text == (
        "flowchart TD\n"
        '    t0["0.a: Do a"]:::succeeded\n'
        '    t1["0.b: Do b"]:::pending\n'
        "    t0 --> t1\n"
        "    classDef pending fill:#eeeeee\n"
        "    classDef succeeded fill:#c8e6c9\n"
    )


async def test_what_a_generation_carries_is_drawn_with_what_it_adds(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await replanned_run(client, services)

    drawn = [
        (await client.get(run["links"]["plan"], params={"format": "mermaid", "generation": n})).text for n in (0, 1)
    ]

    assert drawn[0].splitlines()[1:4] == [
        '    t0["0.a: Do a"]:::succeeded',
        '    t1["0.b: Do b"]:::failed',
        '    t2["0.c: Do c"]:::superseded',
    ]
    assert drawn[1].splitlines()[1:6] == [
        '    t0["0.a: Do a"]:::succeeded',
        '    t1["1.b: Do b otherwise"]:::pending',
        '    t2["1.c: Do c"]:::pending',
        "    t0 --> t2",
        "    t1 --> t2",
    ]


async def test_no_description_breaks_out_of_its_place_in_mermaid(client: httpx.AsyncClient) -> None:
    evil = '"]; click t0 "javascript:alert(1)"\n%% `<script>` #quot; end'
    run = await new_run(client, plan={"tasks": [{"id": 'x"]', "description": evil}]})

    lines = (await client.get(run["links"]["plan"], params={"format": "mermaid"})).text.splitlines()

    assert len(lines) == 3
    label = lines[1].removeprefix('    t0["').removesuffix('"]:::pending')
    assert not set(label) & set('"[]<>`')


async def test_tasks_come_in_plan_order_over_all_generations(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, plan=chain("z", "a"))
    await commit(services.database, run["id"], _replanned(1))

    assert [task["key"] for task in (await get(client, run["links"]["tasks"]))["data"]] == ["0.z", "0.a", "1.a"]


async def test_tasks_are_listed_by_generation_and_status(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, plan=chain("a", "b", "c"))
    await commit(services.database, run["id"], _replanned(1))
    await commit(services.database, run["id"], lambda c: c.task(TaskKey("0.a"), TaskStatus.SUCCEEDED, result={"n": 1}))
    await commit(services.database, run["id"], lambda c: c.task(TaskKey("0.b"), TaskStatus.RUNNING))

    async def keys(**query: Any) -> list[str]:
        return [task["key"] for task in (await get(client, run["links"]["tasks"], **query))["data"]]

    assert await keys(generation=1) == ["1.a"]
    assert await keys(status="running") == ["0.b"]
    assert await keys(status=["running", "succeeded"]) == ["0.a", "0.b"]
    assert await keys(status="pending", generation=0) == ["0.c"]
    assert await keys(generation=7) == []


async def test_a_list_of_tasks_shows_results_and_no_attempts(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, plan=chain("a"))
    await commit(services.database, run["id"], lambda c: c.task(TaskKey("0.a"), TaskStatus.SUCCEEDED, result={"n": 1}))

    (task,) = (await get(client, run["links"]["tasks"]))["data"]

    assert (task["result"], task["attempts"]) == ({"n": 1}, None)
    assert task["finished_at"] is not None


async def test_a_task_carries_its_attempts_with_what_they_used(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, plan=chain("a"))
    await commit(services.database, run["id"], attempt_spoiled("0.a"))
    usage = Usage(input_tokens=7, output_tokens=5)
    await commit(
        services.database, run["id"], lambda c: c.call_ended(1, CallStatus.ANSWERED, usage=usage, cost_nano_usd=4_050)
    )

    task = await get(client, f"{run['links']['tasks']}/0.a")

    (attempt,) = task["attempts"]
    assert task["status"] == "retrying"
    assert task["next_attempt_at"] > task["started_at"]
    assert attempt == {
        "number": 1,
        "status": "failed",
        "description": "Do it",
        "error": {"kind": "empty_answer", "message": "The answer is empty.", "retryable": True},
        "started_at": attempt["started_at"],
        "finished_at": attempt["finished_at"],
        "usage": {"llm_calls": 1, "tool_calls": 0, "input_tokens": 7, "output_tokens": 5, "cost_usd": 0.00000405},
        "tool_calls": [],
    }
    assert (await get(client, run["links"]["self"]))["usage"] == attempt["usage"]


async def test_each_attempt_shows_its_wording_and_the_task_its_plans(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client, plan=chain("a"))
    await commit(services.database, run["id"], attempt_spoiled("0.a"))

    def reworded(changes: Changes) -> None:
        changes.task_begins_anew(TaskKey("0.a"), wording="Do it gently", reworded=True, attempts_before=1)
        changes.attempt_started(TaskKey("0.a"), 2, description="Do it gently", prompt_hash="0123456789abcdef")

    await commit(services.database, run["id"], reworded)

    task = await get(client, f"{run['links']['tasks']}/0.a")
    assert task["description"] == "Do a"
    assert [attempt["description"] for attempt in task["attempts"]] == ["Do it", "Do it gently"]


@pytest.mark.parametrize(
    "key", ["0.b", "1.a", "a", "%00", "0.%00", "0.%0A", "0." + "x" * 300, "9" * 300 + ".a", "0.%ff"]
)
async def test_a_task_that_is_not_there_is_not_found(client: httpx.AsyncClient, key: str) -> None:
    run = await new_run(client, plan=chain("a"))

    assert code_of(await client.get(f"{run['links']['tasks']}/{key}"), 404) == "task_not_found"


async def test_tasks_are_walked_in_pages(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain(*range(7)))

    pages = [await get(client, run["links"]["tasks"], limit=3)]
    while pages[-1]["has_more"]:
        pages.append(await get(client, run["links"]["tasks"], limit=3, cursor=pages[-1]["next_cursor"]))

    assert [len(page["data"]) for page in pages] == [3, 3, 1]
    assert [task["key"] for page in pages for task in page["data"]] == [f"0.{n}" for n in range(7)]


async def test_events_come_in_order_after_a_number(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain("a", "b"))
    await client.post(f"/runs/{run['id']}/cancel")

    events = (await get(client, run["links"]["events"]))["data"]

    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5]
    assert events[0] == {
        "seq": 1,
        "type": "run.queued",
        "at": run["created_at"],
        "run_id": run["id"],
        "task_key": None,
        "data": {"goal_id": run["goal_id"]},
    }
    assert events[2]["task_key"] == "0.a"
    assert (await get(client, run["links"]["events"], after=3))["data"] == events[3:]
    assert (await get(client, run["links"]["events"], after=5))["data"] == []


async def test_events_are_walked_in_pages(client: httpx.AsyncClient) -> None:
    run = await new_run(client, plan=chain("a", "b"))
    await client.post(f"/runs/{run['id']}/cancel")

    first = await get(client, run["links"]["events"], limit=2, after=1)
    rest = await get(client, run["links"]["events"], limit=2, after=1, cursor=first["next_cursor"])

    assert [event["seq"] for page in (first, rest) for event in page["data"]] == [2, 3, 4, 5]
    assert (first["has_more"], rest["has_more"]) == (True, False)
