"""What a model's record and the stored rows say of calls that were made more than once."""

import time
from collections import defaultdict
from collections.abc import Iterable

from app.domain.ids import RunId
from app.storage import tables
from app.storage.database import Database
from tests.scripted_model import Call, ScriptedModel
from tests.stored import rows_of

_DONE_WITHOUT = ("failed", "skipped", "cancelled", "superseded")

Place = tuple[str, str]
"""What a call is for: its run, and its seat with its task."""


def place(call: Call) -> Place:
    return call.run_id, f"{call.seat} {call.task_key}"


def by_place(calls: Iterable[Call]) -> dict[Place, list[Call]]:
    """In order of arrival."""
    found: defaultdict[Place, list[Call]] = defaultdict(list)
    for call in calls:
        found[place(call)].append(call)
    return found


async def every_result_is_there_and_nothing_recorded_was_asked_again(
    database: Database, run_id: RunId, model: ScriptedModel
) -> None:
    """Each task has the result that the model gave to it, and was not called once its success was recorded.

    The test and its databases share one machine, and so one clock.
    """
    offset = time.time() - time.monotonic()
    wanted = [task for task in await rows_of(database, tables.tasks, run_id) if task["status"] not in _DONE_WITHOUT]
    assert {task["key"]: task["result"] for task in wanted} == {t["key"]: f"result of {t['key']}" for t in wanted}
    last_call = {call.task_key: call.arrived_at for call in model.by_seat("executor", run_id=str(run_id))}
    for event in await rows_of(database, tables.events, run_id):
        if event["type"] == "task.succeeded" and "review_id" not in event["data"]:
            assert (last_call[event["task_key"]] + offset) * 1000 <= event["at"] + 1, (run_id, event)
