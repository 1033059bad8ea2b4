"""Volumes and their snapshots."""

from __future__ import annotations

from alembic import op

from services.machine_store.queries import load

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None

# Only additions: an instance of the version before goes on with them.
_STATEMENTS: tuple[str, ...] = (
    # `kept` is reserved for the machine that is to have the volume; empty when nothing is.
    """
    CREATE TABLE volumes (
        id text PRIMARY KEY,
        app_id text NOT NULL,
        app_name text NOT NULL,
        name text NOT NULL,
        region text NOT NULL,
        state smallint NOT NULL,
        size_bytes bigint NOT NULL,
        worker_id text NOT NULL,
        zone text NOT NULL,
        encrypted boolean NOT NULL,
        fstype text NOT NULL,
        snapshot_retention_days integer NOT NULL,
        auto_backup_enabled boolean NOT NULL,
        host_dedication_id text NOT NULL,
        attached_machine_id text NOT NULL DEFAULT '',
        kept bigint[] NOT NULL,
        source_snapshot_id text NOT NULL,
        source_volume_id text NOT NULL,
        source_worker_id text NOT NULL,
        reason text NOT NULL DEFAULT '',
        key text NOT NULL,
        fingerprint bytea NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        revision bigint NOT NULL
    )
    """,
    "CREATE INDEX volumes_of_app ON volumes (app_id)",
    "CREATE UNIQUE INDEX volumes_by_key ON volumes (app_id, key) WHERE key <> ''",
    "CREATE INDEX volumes_on_worker ON volumes (worker_id) WHERE state <> 7",
    "CREATE UNIQUE INDEX volumes_of_machine ON volumes (attached_machine_id) WHERE attached_machine_id <> ''",
    # `digest` is sha256:HEX, or empty.
    """
    CREATE TABLE snapshots (
        id text PRIMARY KEY,
        volume_id text NOT NULL,
        app_id text NOT NULL,
        worker_id text NOT NULL,
        state smallint NOT NULL,
        volume_size_bytes bigint NOT NULL,
        size_bytes bigint NOT NULL DEFAULT 0,
        digest text NOT NULL DEFAULT '',
        retention_days integer NOT NULL,
        reason text NOT NULL DEFAULT '',
        created_at timestamptz NOT NULL,
        revision bigint NOT NULL
    )
    """,
    "CREATE INDEX snapshots_of_volume ON snapshots (volume_id)",
    "CREATE INDEX snapshots_on_worker ON snapshots (worker_id) WHERE state <> 4",
)


def upgrade() -> None:
    connection = op.get_bind()
    repair = load("functions")["function_repair_reservations"]
    replaced = repair.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
    for statement in (*_STATEMENTS, *load("volume_functions").values(), replaced):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("a region's data are not taken away: restore a backup instead")
