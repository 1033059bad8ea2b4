"""Secrets and revocations of tokens."""

from __future__ import annotations

from alembic import op

from services.machine_store.queries import load

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Only additions: an instance of the version before goes on with them. Functions are as they are now; the types of
    # their arguments are as they were.
    connection = op.get_bind()
    for statement in load("replica_functions").values():
        if statement.startswith("CREATE FUNCTION"):
            connection.exec_driver_sql(statement.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1))


def downgrade() -> None:
    raise NotImplementedError("a region's data are not taken away: restore a backup instead")
