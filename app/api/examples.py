"""The examples that the OpenAPI document shows; a test holds them against the models."""

from typing import Any

from app.domain.status import TaskStatus

GOAL_ID = "01980000-0000-7000-8000-000000000001"
RUN_ID = "01980000-0000-7000-8000-000000000002"
REVIEW_ID = "01980000-0000-7000-8000-000000000003"
_RUN_PATH = f"/runs/{RUN_ID}"

NEW_GOAL: dict[str, Any] = {
    "goal": "Write a blog post about Python async/await",
    "context": {"audience": "backend developers"},
    "options": {"max_tasks": 5},
    "metadata": {"ticket": "42"},
}
NEW_GOAL_WITH_TOOLS: dict[str, Any] = {
    "goal": "What do 1,200 dollars cost in euros at today's rate?",
    "options": {"tools": ["calculator", "http_get"], "approval": "tools", "max_steps": 10},
    "budget": {"max_tool_calls": 20},
}
NEW_GOAL_WITH_PLAN: dict[str, Any] = {
    "goal": "Compare two databases",
    "plan": {
        "tasks": [
            {"id": "a", "description": "List what SQLite is good at"},
            {"id": "b", "description": "List what PostgreSQL is good at"},
            {"id": "c", "description": "Compare the two lists", "depends_on": ["a", "b"]},
        ]
    },
}
NEW_RUN: dict[str, Any] = {"options": {"max_parallel": 2}}
RUN_RETRY: dict[str, Any] = {"budget": {"max_llm_calls": 40}, "options": {"max_attempts": 5}}
REVIEW_ANSWERS: dict[str, Any] = {
    "go on": {"decision": "approve"},
    "another plan, drawn": {"decision": "reject", "instructions": "Write the post in German."},
    "another plan, given": {
        "decision": "edit",
        "plan": {"tasks": [{"id": "1", "description": "Write the post"}]},
    },
    "once more": {"decision": "retry", "description": "Explain in three sentences what an event loop does"},
    "the result": {"decision": "supply", "result": "An event loop runs callbacks when …"},
    "do not call it": {"decision": "reject", "instructions": "Write to the test list instead."},
}

GOAL: dict[str, Any] = {
    "id": GOAL_ID,
    "goal": "Write a blog post about Python async/await",
    "context": {"audience": "backend developers"},
    "metadata": {"ticket": "42"},
    "run_ids": [RUN_ID],
    "created_at": "2026-01-01T00:00:00.000Z",
}

_NO_USAGE = {"llm_calls": 0, "tool_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_usd": None}
_USAGE = {"llm_calls": 1, "tool_calls": 0, "input_tokens": 412, "output_tokens": 230, "cost_usd": None}
_NO_PROGRESS = {"total": 0, **{status.value: 0 for status in TaskStatus}}

QUEUED_RUN: dict[str, Any] = {
    "id": RUN_ID,
    "goal_id": GOAL_ID,
    "goal": "Write a blog post about Python async/await",
    "mode": "execute",
    "status": "queued",
    "stop_requested": None,
    "generation": None,
    "result": None,
    "error": None,
    "progress": _NO_PROGRESS,
    "usage": _NO_USAGE,
    "budget": {
        "max_tokens": None,
        "max_llm_calls": None,
        "max_tool_calls": None,
        "max_seconds": None,
        "max_cost_usd": None,
    },
    "options": {
        "model": None,
        "planner_model": None,
        "synthesizer_model": None,
        "min_tasks": 1,
        "max_tasks": 5,
        "max_parallel": 8,
        "max_attempts": 3,
        "max_steps": 20,
        "task_timeout_seconds": 300,
        "on_failure": "auto",
        "max_replans": 2,
        "on_exhausted": "fail",
        "tools": [],
        "approval": "none",
        "synthesize": True,
        "output_schema": None,
    },
    "metadata": {"ticket": "42"},
    "model": "gpt-4o-mini",
    "open_reviews": 0,
    "allowed_actions": ["cancel", "pause"],
    "links": {
        "self": _RUN_PATH,
        "goal": f"/goals/{GOAL_ID}",
        "plan": f"{_RUN_PATH}/plan",
        "tasks": f"{_RUN_PATH}/tasks",
        "reviews": f"{_RUN_PATH}/reviews",
        "events": f"{_RUN_PATH}/events",
    },
    "version": 1,
    "created_at": "2026-01-01T00:00:00.000Z",
    "started_at": None,
    "finished_at": None,
}
RUNNING_RUN: dict[str, Any] = {
    **QUEUED_RUN,
    "status": "running",
    "generation": 0,
    "progress": {**_NO_PROGRESS, "total": 3, "succeeded": 1, "running": 1, "pending": 1},
    "usage": {"llm_calls": 3, "tool_calls": 0, "input_tokens": 1240, "output_tokens": 610, "cost_usd": None},
    "version": 7,
    "started_at": "2026-01-01T00:00:00.120Z",
}
PAUSED_RUN: dict[str, Any] = {
    **RUNNING_RUN,
    "status": "paused",
    "progress": {**_NO_PROGRESS, "total": 3, "succeeded": 2, "pending": 1},
    "allowed_actions": ["cancel", "resume"],
    "version": 9,
}
RETRIED_RUN: dict[str, Any] = {
    **RUNNING_RUN,
    "status": "queued",
    "progress": {**_NO_PROGRESS, "total": 3, "succeeded": 1, "pending": 2},
    "version": 10,
}
CANCELLED_RUN: dict[str, Any] = {
    **RUNNING_RUN,
    "status": "cancelled",
    "progress": {**_NO_PROGRESS, "total": 3, "succeeded": 1, "cancelled": 2},
    "allowed_actions": ["retry", "delete"],
    "version": 9,
    "finished_at": "2026-01-01T00:00:05.300Z",
}
SUCCEEDED_RUN: dict[str, Any] = {
    **RUNNING_RUN,
    "status": "succeeded",
    "result": "# async/await in Python\n\nA coroutine is …",
    "progress": {**_NO_PROGRESS, "total": 3, "succeeded": 3},
    "allowed_actions": ["delete"],
    "version": 12,
    "finished_at": "2026-01-01T00:00:09.004Z",
}

TASK: dict[str, Any] = {
    "key": "0.1",
    "generation": 0,
    "description": "Explain what an event loop does",
    "depends_on": [],
    "wave": 1,
    "critical": True,
    "tools": [],
    "status": "succeeded",
    "result": "An event loop runs callbacks when …",
    "skip_reason": None,
    "attempts": None,
    "next_attempt_at": None,
    "started_at": "2026-01-01T00:00:01.020Z",
    "finished_at": "2026-01-01T00:00:03.870Z",
}
TOOL: dict[str, Any] = {
    "name": "http_get",
    "description": "Fetches a page and gives its text.",
    "input_schema": {
        "type": "object",
        "properties": {"url": {"type": "string", "description": "http or https"}},
        "required": ["url"],
        "additionalProperties": False,
    },
    "side_effects": "none",
}
TOOL_CALL: dict[str, Any] = {
    "number": 1,
    "step": 1,
    "tool": "http_get",
    "arguments": {"url": "https://docs.python.org/3/library/asyncio.html"},
    "side_effects": "none",
    "status": "returned",
    "result": "asyncio is a library to write concurrent code …",
    "error": None,
    "asked_at": "2026-01-01T00:00:01.900Z",
    "started_at": "2026-01-01T00:00:01.900Z",
    "finished_at": "2026-01-01T00:00:02.310Z",
}
TASK_WITH_ATTEMPTS: dict[str, Any] = {
    **TASK,
    "tools": ["http_get"],
    "attempts": [
        {
            "number": 1,
            "status": "succeeded",
            "description": "Explain what an event loop does",
            "error": None,
            "started_at": "2026-01-01T00:00:01.020Z",
            "finished_at": "2026-01-01T00:00:03.870Z",
            "usage": {**_USAGE, "llm_calls": 2, "tool_calls": 1},
            "tool_calls": [TOOL_CALL],
        }
    ],
}
_PENDING_TASK: dict[str, Any] = {
    **TASK,
    "key": "0.2",
    "description": "Write the post",
    "depends_on": ["0.1"],
    "wave": 2,
    "status": "pending",
    "result": None,
    "started_at": None,
    "finished_at": None,
}
PLAN: dict[str, Any] = {
    "generation": 0,
    "reason": "initial",
    "failed_task_keys": [],
    "parent_generation": None,
    "added": ["0.1", "0.2"],
    "carried": [],
    "superseded": [],
    "critical_path": ["0.1", "0.2"],
    "tasks": [{**TASK, "result": None}, _PENDING_TASK],
    "waves": [["0.1"], ["0.2"]],
    "usage": {"llm_calls": 2, "tool_calls": 0, "input_tokens": 830, "output_tokens": 410, "cost_usd": None},
    "created_at": "2026-01-01T00:00:00.940Z",
}
REVIEW: dict[str, Any] = {
    "id": REVIEW_ID,
    "kind": "failure",
    "task_key": "0.1",
    "question": {
        "task": {"key": "0.1", "description": "Explain what an event loop does"},
        "error": {"kind": "empty_answer", "message": "The answer is empty.", "retryable": True},
    },
    "allowed_answers": ["retry", "skip", "replan", "supply", "fail"],
    "answer": None,
    "opened_at": "2026-01-01T00:00:04.100Z",
    "answered_at": None,
}
TOOL_REVIEW: dict[str, Any] = {
    **REVIEW,
    "kind": "tool_call",
    "question": {
        "text": "May task 0.1 call send_mail with these arguments?",
        "tool_call": {
            "number": 3,
            "tool": "send_mail",
            "arguments": {"to": "all@example.com", "subject": "Event loops"},
            "side_effects": "once",
            "outcome_unknown": False,
        },
    },
    "allowed_answers": ["approve", "reject"],
}
ANSWERED_REVIEW: dict[str, Any] = {
    **REVIEW,
    "answer": REVIEW_ANSWERS["once more"],
    "answered_at": "2026-01-01T00:03:12.480Z",
}
MERMAID = (
    'flowchart TD\n    t0["0.1: Explain what an event loop does"]:::succeeded\n    classDef succeeded fill:#c8e6c9\n'
)
EVENT: dict[str, Any] = {
    "seq": 1,
    "type": "run.queued",
    "at": "2026-01-01T00:00:00.000Z",
    "run_id": RUN_ID,
    "task_key": None,
    "data": {"goal_id": GOAL_ID},
}
TOOL_CALLED: dict[str, Any] = {
    "seq": 6,
    "type": "tool.called",
    "at": "2026-01-01T00:00:01.900Z",
    "run_id": RUN_ID,
    "task_key": "0.1",
    "data": {
        "tool_call": 1,
        "attempt": 1,
        "tool": "http_get",
        "arguments": '{"url": "https://docs.python.org/3/library/asyncio.html"}',
        "side_effects": "none",
    },
}
TOOL_RETURNED: dict[str, Any] = {
    **TOOL_CALLED,
    "seq": 7,
    "type": "tool.returned",
    "at": "2026-01-01T00:00:02.310Z",
    "data": {"tool_call": 1, "tool": "http_get", "status": "returned"},
}


def page_of(*entries: dict[str, Any]) -> dict[str, Any]:
    """A page that holds these."""
    return {"data": list(entries), "has_more": False, "next_cursor": None}
