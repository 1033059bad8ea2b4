"""Releases of apps."""

from __future__ import annotations

from alembic import op

from services.machine_store.queries import load

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Only additions: an instance of the version before goes on with them.
_STATEMENTS: tuple[str, ...] = (
    # Rows stay, so that no number is given twice. `definition` and `metadata` are JSON, or empty.
    """
    CREATE TABLE releases (
        id text PRIMARY KEY,
        app_id text NOT NULL,
        version bigint NOT NULL,
        status smallint NOT NULL,
        strategy text NOT NULL,
        made_by text NOT NULL,
        image_ref text NOT NULL,
        definition text NOT NULL,
        metadata text NOT NULL,
        key text NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        revision bigint NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX releases_of_app ON releases (app_id, version)",
    "CREATE UNIQUE INDEX releases_by_key ON releases (app_id, key) WHERE key <> ''",
)


def upgrade() -> None:
    connection = op.get_bind()
    for statement in (*_STATEMENTS, *load("release_functions").values()):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("a region's data are not taken away: restore a backup instead")
