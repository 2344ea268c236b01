"""What a run asks of people, over real HTTP: every answer, crashes in between, and answers that come too late."""

import asyncio
import json
from uuid import UUID

import httpx
import pytest

from app.domain.ids import RunId
from tests.databases import opened
from tests.invariants import check
from tests.scripted_model import DIAMOND, Plan, Reply, ScriptedModel, plan_reply, script, tasks_of, text
from tests.service_process import Json, StartProcess, events, every, finished, start_run, tasks_by_key

EMPTY = text("")
BY_HAND = {"max_attempts": 1, "on_failure": "review"}
APPROVED = {"approval": "plan"}
CHAIN: Plan = {"a": [], "b": ["a"]}
ONE_LOOP = pytest.mark.asyncio(loop_scope="module")


async def open_reviews(client: httpx.AsyncClient, run_id: str) -> list[Json]:
    return [r async for r in every(client, f"/runs/{run_id}/reviews") if r["answered_at"] is None]


async def asks(client: httpx.AsyncClient, run_id: str, *, status: str = "awaiting_review") -> Json:
    """The one open review of the run, once the run stands as it should."""
    run: Json = {}
    try:
        async with asyncio.timeout(60):
            while run.get("status") != status or run["open_reviews"] == 0:
                run = (await client.get(f"/runs/{run_id}")).json()
                assert run.get("finished_at") is None, run
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it asked nothing: {run}") from None
    (review,) = await open_reviews(client, run_id)
    return review


async def answer(client: httpx.AsyncClient, run_id: str, review: Json, decision: str, **more: object) -> httpx.Response:
    return await client.post(f"/runs/{run_id}/reviews/{review['id']}", json={"decision": decision, **more})


async def answered(client: httpx.AsyncClient, run_id: str, review: Json, decision: str, **more: object) -> Json:
    """The run once it has finished, this review being answered."""
    response = await answer(client, run_id, review, decision, **more)
    assert response.status_code == 200, response.text
    told = response.json()
    assert (told["id"], told["answer"]["decision"]) == (review["id"], decision)
    return await finished(client, run_id)


def replan(tasks: Plan) -> Reply:
    return text(json.dumps({"strategy": "replan", "tasks": tasks_of(tasks)}))


# --- failures


@ONE_LOOP
async def test_a_failed_task_is_shown_to_a_person(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): EMPTY}))
    run = await start_run(client, options=BY_HAND)
    review = await asks(client, run["id"])
    assert (review["kind"], review["task_key"], review["answer"]) == ("failure", "0.b", None)
    assert set(review["allowed_answers"]) == {"retry", "skip", "replan", "supply", "fail"}
    assert review["question"]["error"]["message"]
    now = (await client.get(f"/runs/{run['id']}")).json()
    assert (now["open_reviews"], now["progress"]["awaiting_review"]) == (1, 1)
    assert (await answered(client, run["id"], review, "skip"))["open_reviews"] == 0


@ONE_LOOP
async def test_a_person_has_a_task_tried_again_in_other_words(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): [EMPTY, text("at last")]}))
    run = await start_run(client, options=BY_HAND)
    ended = await answered(client, run["id"], await asks(client, run["id"]), "retry", description="Do b by hand.")
    assert ended["status"] == "succeeded"
    first, second = model.calls_for("0.b", run_id=run["id"])
    assert first.text.endswith("Do b.")
    assert second.text.endswith("Do b by hand.")
    attempts = (await client.get(f"/runs/{run['id']}/tasks/0.b")).json()["attempts"]
    assert [(attempt["description"], attempt["status"]) for attempt in attempts] == [
        ("Do b.", "failed"),
        ("Do b by hand.", "succeeded"),
    ]
    assert len(await events(client, run, "task.reworded")) == 1


@ONE_LOOP
async def test_a_person_may_have_the_same_task_tried_again_and_again(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "b"): [EMPTY, EMPTY, text("at last")]}))
    run = await start_run(client, options=BY_HAND)
    for _ in range(2):
        review = await asks(client, run["id"])
        assert (await answer(client, run["id"], review, "retry")).status_code == 200
    ended = await finished(client, run["id"])
    assert (ended["status"], len(model.calls_for("0.b"))) == ("succeeded", 3)
    assert len([r async for r in every(client, f"/runs/{run['id']}/reviews")]) == 2


@ONE_LOOP
async def test_a_person_skips_a_task_and_its_dependents_are_told(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "b"): EMPTY}))
    run = await start_run(client, options=BY_HAND)
    ended = await answered(client, run["id"], await asks(client, run["id"]), "skip")
    assert (ended["status"], ended["progress"]["skipped"]) == ("succeeded", 1)
    assert "0.b" in model.calls_for("0.d")[0].text
    assert model.order(run_id=run["id"])[-2:] == ["0.d", "synthesizer"]


@ONE_LOOP
@pytest.mark.parametrize("result", ["by hand", {"rows": [1, 2]}, False])
async def test_a_person_supplies_the_result(client: httpx.AsyncClient, model: ScriptedModel, result: object) -> None:
    model.begin(script({("executor", "b"): EMPTY}))
    run = await start_run(client, options=BY_HAND)
    ended = await answered(client, run["id"], await asks(client, run["id"]), "supply", result=result)
    assert ended["status"] == "succeeded"
    assert (await tasks_by_key(client, run["id"]))["0.b"]["result"] == result
    assert (result if isinstance(result, str) else json.dumps(result)) in model.calls_for("0.d")[0].text
    assert len(model.calls_for("0.b")) == 1


@ONE_LOOP
async def test_a_person_wants_another_plan_in_place_of_a_failed_task(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({("executor", "b"): EMPTY, "recovery": replan({"x": ["0.a"]})}))
    run = await start_run(client, options=BY_HAND)
    review = await asks(client, run["id"])
    ended = await answered(client, run["id"], review, "replan", instructions="Without heavy lifting.")
    assert (ended["status"], ended["generation"]) == ("succeeded", 1)
    assert "Without heavy lifting." in model.by_seat("recovery")[0].text
    plan = (await client.get(f"/runs/{run['id']}/plan")).json()
    assert (plan["reason"], plan["failed_task_keys"], plan["superseded"]) == ("requested", ["0.b"], ["0.d"])
    assert sorted(model.order(run_id=run["id"])) == sorted(
        ["planner", "0.a", "0.b", "0.c", "0.b", "1.x", "synthesizer"]
    )


@ONE_LOOP
async def test_a_person_fails_a_task_and_the_run_with_it(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): EMPTY}))
    run = await start_run(client, options=BY_HAND)
    ended = await answered(client, run["id"], await asks(client, run["id"]), "fail")
    assert (ended["status"], ended["error"]["code"], ended["error"]["task_key"]) == ("failed", "task_failed", "0.b")
    tasks = await tasks_by_key(client, run["id"])
    assert {key: task["status"] for key, task in tasks.items()} == {
        "0.a": "succeeded",
        "0.b": "failed",
        "0.c": "succeeded",
        "0.d": "cancelled",
    }


@ONE_LOOP
async def test_branches_that_need_no_answer_go_on(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    plan: Plan = {"a": [], "b": ["a"], "c": [], "d": ["c"], "e": ["b", "d"]}
    held = asyncio.Event()

    async def once_held(_: object) -> Reply:
        await held.wait()
        return text("c")

    model.begin(script({("executor", "a"): EMPTY, ("executor", "c"): once_held}))
    run = await start_run(client, plan={"tasks": tasks_of(plan)}, options=BY_HAND)
    await asks(client, run["id"], status="running")
    held.set()
    review = await asks(client, run["id"])
    assert sorted(model.order(run_id=run["id"])) == ["0.a", "0.c", "0.d"]
    ended = await answered(client, run["id"], review, "supply", result="a")
    assert ended["status"] == "succeeded"
    assert model.order(run_id=run["id"])[3:] == ["0.b", "0.e", "synthesizer"]


# --- plans


@ONE_LOOP
async def test_nothing_starts_before_the_plan_is_approved(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    run = await start_run(client, options=APPROVED)
    review = await asks(client, run["id"])
    assert model.order(run_id=run["id"]) == ["planner"]
    assert (review["kind"], set(review["allowed_answers"])) == ("plan", {"approve", "edit", "reject"})
    assert [task["key"] for task in review["question"]["plan"]["tasks"]] == ["0.a", "0.b", "0.c", "0.d"]
    assert (await answered(client, run["id"], review, "approve"))["status"] == "succeeded"
    assert model.order(run_id=run["id"]).count("planner") == 1


@ONE_LOOP
async def test_an_edited_plan_is_carried_out_as_it_is_written(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    run = await start_run(client, options=APPROVED)
    plan = {"tasks": tasks_of({"x": [], "y": ["x"]})}
    ended = await answered(client, run["id"], await asks(client, run["id"]), "edit", plan=plan)
    assert (ended["status"], ended["generation"]) == ("succeeded", 1)
    assert model.order(run_id=run["id"]) == ["planner", "1.x", "1.y", "synthesizer"]
    drawn = (await client.get(f"/runs/{run['id']}/plan")).json()
    assert (drawn["reason"], drawn["superseded"]) == ("client", ["0.a", "0.b", "0.c", "0.d"])


@ONE_LOOP
async def test_a_plan_rejected_with_words_is_drawn_again_and_asked_about_again(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    model.begin(script({"planner": [plan_reply(DIAMOND), plan_reply({"x": [], "y": ["x"]})]}))
    run = await start_run(client, options=APPROVED)
    response = await answer(client, run["id"], await asks(client, run["id"]), "reject", instructions="Two steps only.")
    assert response.status_code == 200
    review = await asks(client, run["id"])
    assert "Two steps only." in model.by_seat("planner")[1].text
    assert [task["key"] for task in review["question"]["plan"]["tasks"]] == ["1.x", "1.y"]
    assert (await answered(client, run["id"], review, "approve"))["status"] == "succeeded"
    assert model.order(run_id=run["id"]) == ["planner", "planner", "1.x", "1.y", "synthesizer"]


@ONE_LOOP
async def test_a_plan_rejected_without_words_fails_the_run(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    run = await start_run(client, options=APPROVED)
    ended = await answered(client, run["id"], await asks(client, run["id"]), "reject")
    assert (ended["status"], ended["error"]["code"]) == ("failed", "review_rejected")
    assert model.order(run_id=run["id"]) == ["planner"]
    assert ended["progress"]["cancelled"] == 4


@ONE_LOOP
async def test_a_replan_waits_for_approval_and_what_it_carries_goes_on(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    plan: Plan = {"a": [], "b": ["a"], "c": [], "d": ["c"]}
    held = asyncio.Event()

    async def once_held(_: object) -> Reply:
        await held.wait()
        return text("c")

    model.begin(
        script({("executor", "a"): EMPTY, ("executor", "c"): once_held, "recovery": replan({"x": []})}, plan=plan)
    )
    run = await start_run(client, options={"approval": "plan", "max_attempts": 1, "on_failure": "replan"})
    assert (await answer(client, run["id"], await asks(client, run["id"]), "approve")).status_code == 200
    await asks(client, run["id"], status="running")
    held.set()
    review = await asks(client, run["id"])
    assert [task["key"] for task in review["question"]["plan"]["tasks"]] == ["1.x"]
    assert not model.calls_for("1.x")
    assert len(model.calls_for("0.d")) == 1
    assert (await answered(client, run["id"], review, "approve"))["status"] == "succeeded"
    assert len(model.calls_for("1.x")) == 1


# --- twice, late, at once


@ONE_LOOP
async def test_a_second_answer_is_refused(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): EMPTY}))
    run = await start_run(client, options=BY_HAND)
    review = await asks(client, run["id"])
    await answered(client, run["id"], review, "skip")
    second = await answer(client, run["id"], review, "fail")
    assert (second.status_code, second.json()["code"]) == (409, "already_answered")
    assert (await client.get(f"/runs/{run['id']}/reviews/{review['id']}")).json()["answer"]["decision"] == "skip"


@ONE_LOOP
async def test_an_answer_after_the_run_has_ended_is_refused(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): EMPTY}))
    run = await start_run(client, options=BY_HAND)
    review = await asks(client, run["id"])
    assert (await client.post(f"/runs/{run['id']}/cancel")).json()["status"] == "cancelled"
    late = await answer(client, run["id"], review, "skip")
    assert (late.status_code, late.json()["code"]) == (409, "review_closed")


@ONE_LOOP
async def test_of_answers_at_the_same_time_one_counts(client: httpx.AsyncClient, model: ScriptedModel) -> None:
    model.begin(script({("executor", "b"): EMPTY}))
    run = await start_run(client, options=BY_HAND)
    review = await asks(client, run["id"])
    both = await asyncio.gather(*(answer(client, run["id"], review, "supply", result=f"by {n}") for n in range(8)))
    assert sorted(response.status_code for response in both) == [200, *[409] * 7]
    (won,) = [response.json()["answer"]["result"] for response in both if response.status_code == 200]
    assert (await finished(client, run["id"]))["status"] == "succeeded"
    assert (await tasks_by_key(client, run["id"]))["0.b"]["result"] == won
    assert len(await events(client, run, "review.answered")) == 1


@ONE_LOOP
async def test_an_answer_that_the_review_does_not_take_is_refused_and_leaves_it_open(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    run = await start_run(client, options=APPROVED)
    review = await asks(client, run["id"])
    assert (await answer(client, run["id"], review, "skip")).status_code == 422
    cyclic = {"tasks": tasks_of({"x": ["y"], "y": ["x"]})}
    refused = await answer(client, run["id"], review, "edit", plan=cyclic)
    assert (refused.status_code, refused.json()["code"]) == (422, "plan_invalid")
    assert (await answered(client, run["id"], review, "approve"))["status"] == "succeeded"


# --- crashes


async def consistent(database_url: str, run_id: str) -> None:
    async with opened(database_url) as database:
        await check(database, RunId(UUID(run_id)))


async def test_a_question_about_a_failure_survives_a_kill(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(script({("executor", "b"): [EMPTY, text("at last")]}))
    service = await start_process()
    async with service.client() as client:
        run = await start_run(client, options=BY_HAND)
        review = await asks(client, run["id"])
        await service.kill()
        await service.start()
        assert await asks(client, run["id"]) == review
        ended = await answered(client, run["id"], review, "retry")
    assert (ended["status"], sorted(scripted_model.order())) == (
        "succeeded",
        sorted(["planner", "0.a", "0.b", "0.c", "0.b", "0.d", "synthesizer"]),
    )
    await consistent(database_url, run["id"])


async def test_a_question_about_a_plan_survives_a_kill(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    service = await start_process()
    async with service.client() as client:
        run = await start_run(client, options=APPROVED)
        review = await asks(client, run["id"])
        await service.kill()
        await service.start()
        assert await asks(client, run["id"]) == review
        ended = await answered(client, run["id"], review, "approve")
    assert (ended["status"], len(scripted_model.calls)) == ("succeeded", 6)
    await consistent(database_url, run["id"])


@pytest.mark.parametrize(
    ("decision", "more", "calls"),
    [
        ("retry", {"description": "Do a otherwise."}, ["0.a", "0.b", "synthesizer"]),
        ("replan", {"instructions": "Otherwise."}, ["0.a", "1.x"]),
    ],
)
async def test_an_answer_given_while_no_worker_lives_is_carried_out_by_the_next(
    start_process: StartProcess, scripted_model: ScriptedModel, decision: str, more: Json, calls: list[str]
) -> None:
    scripted_model.begin(script({("executor", "a"): [EMPTY, text("at last")], "recovery": replan({"x": []})}))
    api = await start_process("serve", "--no-worker")
    worker = await start_process("worker")
    async with api.client() as client:
        run = await start_run(client, plan={"tasks": tasks_of(CHAIN)}, options=BY_HAND)
        review = await asks(client, run["id"])
        await worker.kill()
        assert (await answer(client, run["id"], review, decision, **more)).status_code == 200
        assert (await answer(client, run["id"], review, "fail")).status_code == 409
        assert (await client.get(f"/runs/{run['id']}")).json()["status"] == "queued"
        await worker.start()
        ended = await finished(client, run["id"])
    assert (ended["status"], scripted_model.order()[1:]) == ("succeeded", calls)


async def test_a_kill_while_a_requested_plan_is_drawn_has_it_drawn_again(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel
) -> None:
    scripted_model.begin(
        script({("executor", "a"): EMPTY, "recovery": [Reply(hangs=True), replan({"x": []})]}, plan=CHAIN)
    )
    service = await start_process("serve", lease_seconds=2)
    async with service.client() as client:
        run = await start_run(client, options=BY_HAND)
        review = await asks(client, run["id"])
        assert (await answer(client, run["id"], review, "replan", instructions="Lighter.")).status_code == 200
        await scripted_model.until(lambda: len(scripted_model.by_seat("recovery")) == 1)
        await service.kill()
        await service.start()
        ended = await finished(client, run["id"])
    assert (ended["status"], ended["generation"]) == ("succeeded", 1)
    first, second = scripted_model.by_seat("recovery")
    assert first.messages == second.messages
    assert "Lighter." in second.text
    await consistent(database_url, run["id"])


@pytest.mark.parametrize("about", ["a failure", "a plan"])
async def test_a_no_that_was_given_before_a_kill_is_not_asked_for_again(
    database_url: str, start_process: StartProcess, scripted_model: ScriptedModel, about: str
) -> None:
    """The run still waits for a call in flight when it is killed; the next worker lets it end as it was told to."""
    plan: Plan = {"a": [], "b": ["a"], "c": []}
    scripted_model.begin(
        script(
            {("executor", "a"): EMPTY, ("executor", "c"): [Reply(hangs=True), text("c")], "recovery": replan({"x": []})}
        )
    )
    options = BY_HAND if about == "a failure" else {**APPROVED, "max_attempts": 1, "on_failure": "replan"}
    service = await start_process("serve", lease_seconds=2)
    async with service.client() as client:
        run = await start_run(client, plan={"tasks": tasks_of(plan)}, options=options)
        if about == "a plan":
            assert (await answer(client, run["id"], await asks(client, run["id"]), "approve")).status_code == 200
        review = await asks(client, run["id"], status="running")
        no = await answer(client, run["id"], review, "fail" if about == "a failure" else "reject")
        assert no.status_code == 200
        # Whether or not it was carried out by then comes to the same; here it most likely was.
        for _ in range(20):
            assert (await client.get(f"/runs/{run['id']}")).json()["status"] == "running"
        await service.kill()
        await service.start()
        ended = await finished(client, run["id"])
        asked = [entry["id"] async for entry in every(client, f"/runs/{run['id']}/reviews")]
    assert (ended["status"], ended["error"]["code"]) == (
        "failed",
        "task_failed" if about == "a failure" else "review_rejected",
    )
    assert asked[-1] == review["id"]
    await consistent(database_url, run["id"])
