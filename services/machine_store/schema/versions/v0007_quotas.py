"""Bounds on how many machines an organization has."""

from __future__ import annotations

from alembic import op

from services.machine_store.queries import load

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# Only additions: an instance of the version before goes on with them.
_STATEMENTS: tuple[str, ...] = (
    # Of the few organizations that have a bound: what every create asks.
    """
    CREATE INDEX organizations_with_quota ON catalog_records ((document ->> 'slug'))
    WHERE kind = 5 AND NOT deleted AND document -> 'limits' ? 'max_machines'
    """,
    # What is counted where there is a bound: the machines of each app are in machines_name.
    "CREATE INDEX apps_of_organization ON apps (organization_slug)",
)


def upgrade() -> None:
    connection = op.get_bind()
    commit = load("functions")["function_commit_batch"].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
    for statement in (*_STATEMENTS, commit):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("a region's data are not taken away: restore a backup instead")
