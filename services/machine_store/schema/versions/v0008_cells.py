"""Which cell of the region each app lives in."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Only additions: an instance of the version before goes on with them.
_STATEMENTS: tuple[str, ...] = (
    "CREATE TABLE app_cells (app_id text PRIMARY KEY, cell text NOT NULL, chosen_at timestamptz NOT NULL)",
)


def upgrade() -> None:
    connection = op.get_bind()
    for statement in _STATEMENTS:
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("a region's data are not taken away: restore a backup instead")
