"""Every table, once: the migrations must equal this file (a test compares them).

Times are integer milliseconds since 1970 UTC, read from the database's own clock. `tenant_id` leads every key, so that
tenants can later be spread over several databases. A table of a run's rows has its key and no second index that begins
with the run: without statistics PostgreSQL takes the wrong one of the two, and reads the whole run for each row.
"""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from app.domain.status import CLAIMABLE

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
Millis = sa.BigInteger


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant_id", sa.String(64), primary_key=True)


def _run() -> sa.Column[object]:
    return sa.Column("run_id", sa.Uuid, primary_key=True)


def _of_run() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id", "run_id"], ["runs.tenant_id", "runs.id"], ondelete="CASCADE")


goals = sa.Table(
    "goals",
    metadata,
    _tenant(),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("goal", sa.Text, nullable=False),
    sa.Column("context", Json),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("created_at", Millis, nullable=False),
)

# The row is the run, its place in the queue, and the fence that all its writers pass.
runs = sa.Table(
    "runs",
    metadata,
    _tenant(),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("goal_id", sa.Uuid, nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("stop_requested", sa.String(8)),
    sa.Column("generation", sa.Integer),
    sa.Column("result", Json),
    sa.Column("error", Json),
    sa.Column("options", Json, nullable=False),
    sa.Column("budget", Json, nullable=False),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    # Counts of tasks by status and sums over `calls`, written with what changes them: polling reads one row.
    sa.Column("progress", Json, nullable=False),
    sa.Column("llm_calls", sa.Integer, nullable=False, server_default="0"),
    sa.Column("tool_calls", sa.Integer, nullable=False, server_default="0"),
    sa.Column("input_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("output_tokens", sa.BigInteger, nullable=False, server_default="0"),
    # In 1e-9 USD; NULL until a call whose model has a price.
    sa.Column("cost_nano_usd", sa.BigInteger),
    # Limits of the budget whose 80 % mark has been told of.
    sa.Column("budget_warned", Json),
    # Time in `planning` and `running` up to `active_since`, which is set in these two only.
    sa.Column("active_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("active_since", Millis),
    # Reviews nobody has answered, and all answers so far: a worker that holds the run looks at their number.
    sa.Column("open_reviews", sa.Integer, nullable=False, server_default="0"),
    sa.Column("answers", sa.Integer, nullable=False, server_default="0"),
    # How many of `max_replans` are used up, and the last call made, before a client's last retry.
    sa.Column("replans", sa.Integer, nullable=False, server_default="0"),
    sa.Column("retried_after", sa.Integer, nullable=False, server_default="0"),
    # The last event's number, and one more with every change that a reader could see.
    sa.Column("event_seq", sa.Integer, nullable=False, server_default="0"),
    sa.Column("version", sa.Integer, nullable=False, server_default="1"),
    sa.Column("created_at", Millis, nullable=False),
    sa.Column("started_at", Millis),
    sa.Column("finished_at", Millis),
    # The lease. `ready_at` means "due" while no worker holds the run and "lease ends" while one does. The owner drives
    # it; a run that is held and has none waits for its turn in a worker, whose death is not charged to it.
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("ready_at", Millis, nullable=False),
    sa.Column("lease_token", sa.Uuid),
    sa.Column("lease_owner", sa.String(200)),
    # Claims of this run so far, and those among them that took over an expired lease since the last outcome.
    sa.Column("epoch", sa.Integer, nullable=False, server_default="0"),
    sa.Column("takeovers", sa.Integer, nullable=False, server_default="0"),
    # The last group commit that wrote here: after an unknown COMMIT its writer looks it up.
    sa.Column("batch_id", sa.Uuid),
    sa.ForeignKeyConstraint(["tenant_id", "goal_id"], ["goals.tenant_id", "goals.id"], ondelete="CASCADE"),
    sa.Index("ix_runs_tenant_id_goal_id", "tenant_id", "goal_id"),
    sa.Index("ix_runs_tenant_id_status_id", "tenant_id", "status", "id"),
)
# In literals: SQLite uses a partial index only for a query that repeats its condition.
CLAIMABLE_RUNS = sa.text(f"status IN ({', '.join(repr(status.value) for status in CLAIMABLE)})")
sa.Index(
    "ix_runs_claimable",
    runs.c.priority.desc(),
    runs.c.ready_at,
    sqlite_where=CLAIMABLE_RUNS,
    postgresql_where=CLAIMABLE_RUNS,
)
# Held, and a client wants something of it that its worker looks for.
ASKED_RUNS = sa.text("lease_owner IS NOT NULL AND (stop_requested IS NOT NULL OR answers > 0)")
sa.Index("ix_runs_asked", runs.c.lease_owner, sqlite_where=ASKED_RUNS, postgresql_where=ASKED_RUNS)

plans = sa.Table(
    "plans",
    metadata,
    _tenant(),
    _run(),
    sa.Column("generation", sa.Integer, primary_key=True),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("parent_generation", sa.Integer),
    sa.Column("failed_task_keys", Json, nullable=False),
    sa.Column("added", Json, nullable=False),
    sa.Column("carried", Json, nullable=False),
    sa.Column("superseded", Json, nullable=False),
    sa.Column("critical_path", Json, nullable=False),
    sa.Column("prompt_hash", sa.String(16)),
    sa.Column("created_at", Millis, nullable=False),
    _of_run(),
)

tasks = sa.Table(
    "tasks",
    metadata,
    _tenant(),
    _run(),
    sa.Column("key", sa.Text, primary_key=True),
    # Plan order over all generations of the run: 0, 1, 2 ...
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("critical", sa.Boolean, nullable=False),
    sa.Column("tools", Json, nullable=False),
    sa.Column("output_schema", Json),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("result", Json),
    sa.Column("skip_reason", sa.Text),
    # The description as last reworded, and whether recovery has reworded it: it does so once.
    sa.Column("wording", sa.Text),
    sa.Column("reworded", sa.Boolean, nullable=False, server_default=sa.false()),
    # Attempts that no longer count: made before the last rewording, answer or retry.
    sa.Column("attempts_before", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_attempt_at", Millis),
    sa.Column("started_at", Millis),
    sa.Column("finished_at", Millis),
    _of_run(),
)

dependencies = sa.Table(
    "dependencies",
    metadata,
    _tenant(),
    _run(),
    sa.Column("task_key", sa.Text, primary_key=True),
    sa.Column("depends_on", sa.Text, primary_key=True),
    # The order in which the plan names a task's dependencies.
    sa.Column("position", sa.Integer, nullable=False),
    _of_run(),
)

attempts = sa.Table(
    "attempts",
    metadata,
    _tenant(),
    _run(),
    sa.Column("task_key", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("prompt_hash", sa.String(16)),
    sa.Column("error", Json),
    sa.Column("started_at", Millis, nullable=False),
    sa.Column("finished_at", Millis),
    _of_run(),
)

# Every request to a model, of any seat, written before it is sent.
calls = sa.Table(
    "calls",
    metadata,
    _tenant(),
    _run(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("seat", sa.String(16), nullable=False),
    sa.Column("task_key", sa.Text),
    sa.Column("attempt", sa.Integer),
    # Sends of the same question: 1, and one more after every transport fault.
    sa.Column("try_number", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    # The run's newest plan when it was sent, 0 before there is one.
    sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
    # What it was expected to use: what a lost or cut call is taken to have used.
    sa.Column("reserved_input_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("reserved_output_tokens", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("reserved_cost_nano_usd", sa.BigInteger),
    sa.Column("input_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("cost_nano_usd", sa.BigInteger),
    # What came back, where a later request quotes it: a rejected plan, a step that asked for tools.
    sa.Column("answer", sa.Text),
    sa.Column("error", Json),
    sa.Column("retry_at", Millis),
    sa.Column("started_at", Millis, nullable=False),
    sa.Column("finished_at", Millis),
    _of_run(),
)

# Every call of a tool that a model has asked for, written before it is sent. `started_at` says whether it ever was:
# those are what the run's `tool_calls` counts.
tool_calls = sa.Table(
    "tool_calls",
    metadata,
    _tenant(),
    _run(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("task_key", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    # The step that asked for it: the number of its model call; and the place among those that it asked for.
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    # As the model wrote them.
    sa.Column("call_id", sa.Text, nullable=False),
    sa.Column("tool", sa.Text, nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    # The same for the same task, tool and arguments: what the tool is given as its key. NULL where they are no use.
    sa.Column("idempotency_key", sa.String(64)),
    sa.Column("side_effects", sa.String(16), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", Json),
    sa.Column("asked_at", Millis, nullable=False),
    sa.Column("started_at", Millis),
    sa.Column("finished_at", Millis),
    _of_run(),
)

# What a run asks of a person. Open: not answered, not closed. Answered and not closed: the answer waits for a worker.
# Closed and not answered: the run ended first.
reviews = sa.Table(
    "reviews",
    metadata,
    _tenant(),
    _run(),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("task_key", sa.Text),
    # Of the plan that is to be approved.
    sa.Column("generation", sa.Integer),
    # Of the tool call that it is about.
    sa.Column("tool_call", sa.Integer),
    sa.Column("question", Json, nullable=False),
    sa.Column("allowed_answers", Json, nullable=False),
    sa.Column("answer", Json),
    sa.Column("opened_at", Millis, nullable=False),
    sa.Column("answered_at", Millis),
    sa.Column("closed_at", Millis),
    _of_run(),
)

events = sa.Table(
    "events",
    metadata,
    _tenant(),
    _run(),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("at", Millis, nullable=False),
    sa.Column("task_key", sa.Text),
    sa.Column("data", Json, nullable=False),
    _of_run(),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    _tenant(),
    # The route and the client's key: the same key on another route is another key.
    sa.Column("route", sa.String(120), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("request_hash", sa.String(64), nullable=False),
    sa.Column("run_id", sa.Uuid, nullable=False),
    sa.Column("created_at", Millis, nullable=False),
)
