"""The types of events, and what belongs to each in words, for the document."""

from collections.abc import Mapping

EVENT_TYPES: Mapping[str, str] = {
    "run.queued": "`goal_id`, or the answered `review_id`",
    "run.planning": "",
    "run.started": "",
    "run.awaiting_review": "",
    "run.paused": "",
    "run.resumed": "",
    "run.retried": "",
    "run.succeeded": "",
    "run.failed": "`error`",
    "run.cancelled": "",
    "plan.created": "`generation`, `reason`, the number of its `tasks`, and `failed_task_keys` of a replan",
    "plan.rejected": "`attempt`, `errors`",
    "task.started": "`attempt`",
    "task.retry_scheduled": "`attempt`, `try_number`, `wait_seconds`, `error`",
    "task.reworded": "`description`",
    "task.succeeded": "`attempt`, or the `review_id` whose answer supplied the result",
    "task.failed": "`attempt`, `error`",
    "task.skipped": "`reason`",
    "task.cancelled": "",
    "task.superseded": "the `generation` that replaces it",
    "task.recovered": "`attempt`: another worker has taken it over",
    "tool.called": "`tool_call` (its number), `attempt`, `tool`, `arguments` (their text, shortened), `side_effects`",
    "tool.returned": "`tool_call`, `tool`, the call's `status`, and `error` where it gave no result; also for calls "
    "that were refused, and so never made",
    "review.opened": "`review_id`, `kind`",
    "review.answered": "`review_id`, `decision`",
    "budget.warning": "`limit` (its name), `used`, `of`",
    "budget.exceeded": "`limit` (its name), `used`, `of`",
}


def described() -> str:
    """All of them, each with the members of its `data`, in Markdown."""
    rows = [f"- `{name}`" + (f": {words}" if words else "") for name, words in EVENT_TYPES.items()]
    return "\n".join(["One of these, with what `data` holds:", "", *rows])
