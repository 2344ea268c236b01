"""tool calls; runs of which something is asked; one index for each table of a run's rows

Revision: 0003
Revises: 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ASKED = sa.text("lease_owner IS NOT NULL AND (stop_requested IS NOT NULL OR answers > 0)")


def json() -> sa.types.TypeEngine[Any]:
    """The document type of either database."""
    return sa.JSON(none_as_null=True).with_variant(
        postgresql.JSONB(none_as_null=True, astext_type=Text()), "postgresql"
    )


def upgrade() -> None:
    op.create_table(
        "tool_calls",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("task_key", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("tool", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.String(length=64), nullable=True),
        sa.Column("side_effects", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("error", json(), nullable=True),
        sa.Column("asked_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "run_id"],
            ["runs.tenant_id", "runs.id"],
            name=op.f("fk_tool_calls_tenant_id_run_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", "number", name=op.f("pk_tool_calls")),
    )
    op.create_index("ix_runs_asked", "runs", ["lease_owner"], sqlite_where=_ASKED, postgresql_where=_ASKED)
    op.drop_index("ix_calls_tenant_id_run_id_task_key", "calls")
    with op.batch_alter_table("tasks") as batch_op:
        batch_op.drop_constraint("uq_tasks_tenant_id_run_id_position", type_="unique")
    op.add_column("reviews", sa.Column("tool_call", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.execute("DELETE FROM reviews WHERE kind = 'tool_call'")  # the revision before knows of none
    with op.batch_alter_table("reviews") as batch_op:
        batch_op.drop_column("tool_call")
    with op.batch_alter_table("tasks") as batch_op:
        batch_op.create_unique_constraint("uq_tasks_tenant_id_run_id_position", ["tenant_id", "run_id", "position"])
    op.create_index("ix_calls_tenant_id_run_id_task_key", "calls", ["tenant_id", "run_id", "task_key"])
    op.drop_index("ix_runs_asked", "runs")
    op.drop_table("tool_calls")
