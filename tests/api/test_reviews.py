"""What a run asks of a person: listed, read, answered once."""

import asyncio
from uuid import UUID

import httpx
import pytest

from app.api.services import Services
from app.domain.ids import RunId
from app.storage.database import new_id
from tests.api.asking import NOWHERE, Json, chain, code_of, commit, get, new_run, places_of
from tests.api.reviewing import asked_of_task, waiting_run
from tests.stored import claim_due, claim_one, row_of

EDITED = {"decision": "edit", "plan": chain("x")}


async def events_of(client: httpx.AsyncClient, run: Json, after: int) -> list[tuple[str, Json]]:
    found = (await get(client, run["links"]["events"], after=after))["data"]
    return [(event["type"], event["data"]) for event in found]


# --- read


async def test_a_review_says_what_is_asked_and_what_may_be_answered(
    client: httpx.AsyncClient, services: Services
) -> None:
    run, path = await waiting_run(client, services.database, about="0.a")

    review = await get(client, path)

    assert review == {
        "id": path.rpartition("/")[2],
        "kind": "failure",
        "task_key": "0.a",
        "question": {"text": "What is to become of it?"},
        "allowed_answers": ["retry", "skip", "replan", "supply", "fail"],
        "answer": None,
        "opened_at": review["opened_at"],
        "answered_at": None,
    }
    assert (await get(client, run["links"]["self"]))["open_reviews"] == 1


async def test_reviews_are_listed_in_pages_in_the_order_of_asking(
    client: httpx.AsyncClient, services: Services
) -> None:
    run = await new_run(client, plan=chain("a", "b", "c"))
    ids = [new_id() for _ in range(3)]
    for review_id, key in zip(ids, ("0.c", "0.a", "0.b"), strict=True):
        await commit(services.database, run["id"], asked_of_task(review_id, key))

    first = await get(client, run["links"]["reviews"], limit=2)
    rest = await get(client, run["links"]["reviews"], limit=2, cursor=first["next_cursor"])

    assert [review["id"] for page in (first, rest) for review in page["data"]] == [str(one) for one in ids]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (await get(client, run["links"]["self"]))["open_reviews"] == 3


async def test_a_run_that_asks_nothing_has_no_reviews(client: httpx.AsyncClient) -> None:
    run = await new_run(client)

    assert (await get(client, run["links"]["reviews"]))["data"] == []


async def test_a_review_of_another_run_is_not_found(client: httpx.AsyncClient, services: Services) -> None:
    _, path = await waiting_run(client, services.database)
    other = await new_run(client)
    elsewhere = f"{other['links']['reviews']}/{path.rpartition('/')[2]}"

    assert code_of(await client.get(elsewhere), 404) == "review_not_found"
    assert code_of(await client.post(elsewhere, json={"decision": "approve"}), 404) == "review_not_found"


@pytest.mark.parametrize("review_id", ["x", "%00", "%ff", "1" * 5_000, "01980000000070008000000000000001"])
async def test_a_malformed_review_id_is_not_found_without_sql(lonely: httpx.AsyncClient, review_id: str) -> None:
    path = f"/runs/{NOWHERE}/reviews/{review_id}"

    assert code_of(await lonely.get(path), 404) == "review_not_found"
    assert code_of(await lonely.post(path, json={"decision": "approve"}), 404) == "review_not_found"


async def test_an_answer_to_a_run_that_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.post(f"/runs/{NOWHERE}/reviews/{NOWHERE}", json={"decision": "approve"})

    assert code_of(response, 404) == "run_not_found"


# --- answered


async def test_an_answer_has_the_run_that_waited_for_it_go_on(client: httpx.AsyncClient, services: Services) -> None:
    run, path = await waiting_run(client, services.database)
    assert await claim_due(services.database) == []

    response = await client.post(path, json={"decision": "approve"})

    review = response.json()
    assert response.status_code == 200, response.text
    assert review["answer"] == {"decision": "approve"}
    assert review["answered_at"] >= review["opened_at"]
    assert await get(client, path) == review
    now = await get(client, run["links"]["self"])
    assert (now["status"], now["open_reviews"]) == ("queued", 0)
    assert await events_of(client, run, after=4) == [
        ("review.answered", {"review_id": review["id"], "decision": "approve"}),
        ("run.queued", {"review_id": review["id"]}),
    ]
    assert str((await claim_one(services.database)).run_id) == run["id"]


async def test_an_answer_reaches_the_worker_that_holds_the_run(client: httpx.AsyncClient, services: Services) -> None:
    run = await new_run(client, plan=chain("a", "b"))
    lease = await claim_one(services.database)
    review_id = new_id()
    await commit(services.database, run["id"], asked_of_task(review_id, "0.a"))

    response = await client.post(f"{run['links']['reviews']}/{review_id}", json={"decision": "skip"})

    row = await row_of(services.database, RunId(UUID(run["id"])))
    assert response.status_code == 200
    assert (row["status"], row["lease_token"], row["answers"]) == ("queued", lease.token, 1)
    assert [type_ for type_, _ in await events_of(client, run, after=3)] == ["review.answered"]


async def test_a_paused_run_takes_an_answer_and_stays_paused(client: httpx.AsyncClient, services: Services) -> None:
    run, path = await waiting_run(client, services.database)
    await client.post(f"/runs/{run['id']}/pause")

    response = await client.post(path, json={"decision": "approve"})

    now = await get(client, run["links"]["self"])
    assert response.status_code == 200
    assert (now["status"], now["open_reviews"]) == ("paused", 0)


TAKEN: dict[str, tuple[str | None, Json]] = {
    "approve": (None, {"decision": "approve"}),
    "reject": (None, {"decision": "reject"}),
    "reject with words": (None, {"decision": "reject", "instructions": "Shorter."}),
    "retry": ("0.a", {"decision": "retry"}),
    "retry in other words": ("0.a", {"decision": "retry", "description": "Do it gently"}),
    "skip": ("0.a", {"decision": "skip"}),
    "replan": ("0.a", {"decision": "replan"}),
    "replan with words": ("0.a", {"decision": "replan", "instructions": "x" * 20_000}),
    "supply text": ("0.a", {"decision": "supply", "result": "42"}),
    "supply JSON": ("0.a", {"decision": "supply", "result": {"n": [False, None]}}),
    "supply a value that is not true": ("0.a", {"decision": "supply", "result": 0}),
    "fail": ("0.a", {"decision": "fail"}),
}


@pytest.mark.parametrize(("about", "answer"), TAKEN.values(), ids=TAKEN)
async def test_every_decision_is_kept_with_what_was_given(
    client: httpx.AsyncClient, services: Services, about: str | None, answer: Json
) -> None:
    _, path = await waiting_run(client, services.database, about=about)

    response = await client.post(path, json=answer)

    assert response.status_code == 200, response.text
    assert response.json()["answer"] == answer


async def test_what_is_given_as_null_is_not_kept(client: httpx.AsyncClient, services: Services) -> None:
    _, path = await waiting_run(client, services.database)

    response = await client.post(path, json={"decision": "reject", "instructions": None})

    assert response.json()["answer"] == {"decision": "reject"}


async def test_the_first_answer_counts(client: httpx.AsyncClient, services: Services) -> None:
    _, path = await waiting_run(client, services.database)
    first = await client.post(path, json={"decision": "approve"})

    for answer in ({"decision": "approve"}, {"decision": "reject"}):
        assert code_of(await client.post(path, json=answer), 409) == "already_answered"
    assert await get(client, path) == first.json()


async def test_of_two_answers_at_once_exactly_one_is_taken(client: httpx.AsyncClient, services: Services) -> None:
    for _ in range(4):
        run, path = await waiting_run(client, services.database)
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(client.post(path, json={"decision": decision})) for decision in ("approve", "reject")
            ]

        taken, refused = sorted((task.result() for task in asked), key=lambda response: response.status_code)
        assert taken.status_code == 200
        assert code_of(refused, 409) == "already_answered"
        assert (await get(client, path))["answer"] == taken.json()["answer"]
        assert [type_ for type_, _ in await events_of(client, run, after=4)] == ["review.answered", "run.queued"]


async def test_an_answer_to_a_run_that_ended_first_is_refused(client: httpx.AsyncClient, services: Services) -> None:
    run, path = await waiting_run(client, services.database)
    await client.post(f"/runs/{run['id']}/cancel")

    response = await client.post(path, json={"decision": "approve"})

    assert code_of(response, 409) == "review_closed"
    review = await get(client, path)
    assert (review["answer"], review["answered_at"], review["allowed_answers"]) == (None, None, [])
    assert (await get(client, run["links"]["self"]))["open_reviews"] == 0


async def test_an_answer_to_a_run_that_is_being_cancelled_is_refused(
    client: httpx.AsyncClient, services: Services
) -> None:
    run, review_id = await new_run(client, plan=chain("a", "b")), new_id()
    await claim_one(services.database)
    await commit(services.database, run["id"], asked_of_task(review_id, "0.a"))
    await client.post(f"/runs/{run['id']}/cancel")

    response = await client.post(f"{run['links']['reviews']}/{review_id}", json={"decision": "skip"})

    assert code_of(response, 409) == "review_closed"


async def test_an_answer_of_a_run_that_ended_afterwards_stays(client: httpx.AsyncClient, services: Services) -> None:
    run, path = await waiting_run(client, services.database)
    await client.post(path, json={"decision": "approve"})
    await client.post(f"/runs/{run['id']}/cancel")

    assert code_of(await client.post(path, json={"decision": "approve"}), 409) == "already_answered"
    review = await get(client, path)
    assert (review["answer"], review["allowed_answers"]) == ({"decision": "approve"}, ["approve", "edit", "reject"])


@pytest.mark.parametrize(
    ("about", "answer"),
    [
        (None, {"decision": "skip"}),
        (None, {"decision": "supply", "result": 1}),
        ("0.a", {"decision": "approve"}),
        ("0.a", EDITED),
    ],
)
async def test_a_decision_that_the_review_does_not_allow_is_refused(
    client: httpx.AsyncClient, services: Services, about: str | None, answer: Json
) -> None:
    _, path = await waiting_run(client, services.database, about=about)

    response = await client.post(path, json=answer)

    assert code_of(response, 422) == "not_allowed"
    assert places_of(response) == [("/decision", "not_allowed")]
    assert (await get(client, path))["answer"] is None
