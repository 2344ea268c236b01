"""Mutants that do no harm, each with the reason, and mutants that take more than one change."""

from collections.abc import Mapping, Sequence

_TYPE = "a name for annotations, which nothing reads"
_ENOUGH = "as much a limit that no run comes near"
_NOTHING_THERE = "where the `if` spares the read, there is nothing to read"
_UNANSWERED = "what it would find besides is closed without an answer, and bears on nothing"
_NAMED = "a key of a row that is a column's name is written anyhow"
_SET_BY_NAME = (
    *("status", "finished_at", "error", "started_at"),
    *("reworded", "attempts_before", "answer", "answered_at"),
)
_SET_FROM_NAMES = (
    *("status", "input_tokens", "output_tokens", "cost_nano_usd"),
    *("answer", "error", "retry_at", "finished_at", "result"),
)
_LOCKED = "its run is locked by this transaction, and so is there"
_TASKS = "await list_tasks(connection, *of_run, limit=_ALL)"
_ATTEMPTS = "await _attempts(connection, lease)"
_CALLS = "await _calls(connection, lease, after=run.retried_after)"
_TOOL_CALLS = "await _tool_calls(connection, lease)"
_LAST = "await _last_tool_call(connection, lease)"
_REVIEWS = "await bearing_reviews(connection, *of_run)"
_ACT = "any((task.tools for task in of_plans))"

EQUIVALENTS: Mapping[str, Mapping[str, str]] = {
    "dispatch": {},
    "writing": {
        **{f"_WRITTEN: values without {column}=sa.bindparam('{column}')": _NAMED for column in _SET_BY_NAME},
        **{
            f"_WRITTEN: values without {column}=sa.bindparam('{column}') (2)": _NAMED
            for column in ("status", "finished_at")
        },
        **{f"_WRITTEN: without '{column}'": _NAMED for column in _SET_FROM_NAMES},
        **{f"_WRITTEN: without '{column}' (2)": _NAMED for column in ("status", "error", "finished_at")},
    },
    "steering": {
        "Steered: tuple[RunRecord, bool] | None -> None": _TYPE,
        "Steered: tuple[RunRecord, bool] | None -> tuple[RunRecord, bool]": _TYPE,
        "retry_run: without .order_by(tasks.c.position)": "each task is written by itself, and counting has no order",
        "retry_run: run if now is None else now -> now": _LOCKED,
        "_written: None if now is None else (now, True) -> (now, True)": _LOCKED,
    },
    "resume": {
        "_ALL: 2 ** 31 - 1 -> 2 ** 31": _ENOUGH,
        "_ALL: 2 -> 3": _ENOUGH,
        "_ALL: 31 -> 32": _ENOUGH,
        "_ALL: 1 -> 2": _ENOUGH,
        f"load: [] if run.generation is None else {_TASKS} -> {_TASKS}": _NOTHING_THERE,
        f"load: {_ATTEMPTS} if run.llm_calls else {{}} -> {_ATTEMPTS}": _NOTHING_THERE,
        f"load: {_CALLS} if run.llm_calls else [] -> {_CALLS}": _NOTHING_THERE,
        f"load: {_REVIEWS} if run.open_reviews or run.answers else [] -> {_REVIEWS}": _UNANSWERED,
        f"load: {_TOOL_CALLS} if may_act else {{}} -> {_TOOL_CALLS}": _NOTHING_THERE,
        f"load: {_LAST} if may_act else 0 -> {_LAST}": _NOTHING_THERE,
        **{
            f"load: run.llm_calls > 0 and {_ACT} -> {other}": _NOTHING_THERE
            for other in (f"run.llm_calls > 0 or {_ACT}", _ACT, "run.llm_calls > 0")
        },
        "load: run.llm_calls > 0 -> run.llm_calls >= 0": _NOTHING_THERE,
        "_attempts: order_by without attempts.c.task_key": "they are put together by task, whose order nothing reads",
    },
}

_HELD = "held = [(lease.tenant_id, lease.run_id, lease.token) for lease in leases]"
_HOLDS = "sa.tuple_(runs.c.tenant_id, runs.c.id, runs.c.lease_token)"
HAND_MADE: Mapping[str, Mapping[str, Sequence[tuple[str, str]]]] = {
    "dispatch": {
        "_held_by: without the tenant": [
            (_HELD, _HELD.replace("lease.tenant_id, ", "")),
            (_HOLDS, _HOLDS.replace("runs.c.tenant_id, ", "")),
        ],
        "_held_by: without the run": [
            (_HELD, _HELD.replace("lease.run_id, ", "")),
            (_HOLDS, _HOLDS.replace("runs.c.id, ", "")),
        ],
        "_held_by: without the token": [
            (_HELD, _HELD.replace(", lease.token", "")),
            (_HOLDS, _HOLDS.replace(", runs.c.lease_token", "")),
        ],
    },
    "writing": {},
    "steering": {},
    "resume": {},
}
