"""recovery: reviews, budgets, rewordings

Revision: 0002
Revises: 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Text
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def json() -> sa.types.TypeEngine[Any]:
    """The document type of either database."""
    return sa.JSON(none_as_null=True).with_variant(
        postgresql.JSONB(none_as_null=True, astext_type=Text()), "postgresql"
    )


def count(name: str, type_: type[sa.Integer] = sa.Integer) -> sa.Column[int]:
    """A column that counts from nothing."""
    return sa.Column(name, type_(), server_default="0", nullable=False)


def columns() -> list[tuple[str, sa.Column[Any]]]:
    """One ALTER TABLE per column: a batch would copy the table on SQLite, and drop the old one with all its rows."""
    return [
        ("runs", sa.Column("cost_nano_usd", sa.BigInteger())),
        ("runs", sa.Column("budget_warned", json())),
        ("runs", count("active_ms", sa.BigInteger)),
        ("runs", sa.Column("active_since", sa.BigInteger())),
        ("runs", count("open_reviews")),
        ("runs", count("answers")),
        ("runs", count("replans")),
        ("runs", count("retried_after")),
        ("tasks", sa.Column("wording", sa.Text())),
        ("tasks", sa.Column("reworded", sa.Boolean(), server_default=sa.false(), nullable=False)),
        ("tasks", count("attempts_before")),
        ("calls", count("generation")),
        ("calls", count("reserved_input_tokens", sa.BigInteger)),
        ("calls", count("reserved_output_tokens", sa.BigInteger)),
        ("calls", sa.Column("reserved_cost_nano_usd", sa.BigInteger())),
        ("calls", sa.Column("cost_nano_usd", sa.BigInteger())),
    ]


def upgrade() -> None:
    op.create_table(
        "reviews",
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("task_key", sa.Text()),
        sa.Column("generation", sa.Integer()),
        sa.Column("question", json(), nullable=False),
        sa.Column("allowed_answers", json(), nullable=False),
        sa.Column("answer", json()),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("answered_at", sa.BigInteger()),
        sa.Column("closed_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(
            ["tenant_id", "run_id"],
            ["runs.tenant_id", "runs.id"],
            name=op.f("fk_reviews_tenant_id_run_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "run_id", "id", name=op.f("pk_reviews")),
    )
    for table, column in columns():
        op.add_column(table, column)


def downgrade() -> None:
    for table, column in reversed(columns()):
        op.drop_column(table, column.name)
    op.drop_table("reviews")
