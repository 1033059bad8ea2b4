"""Machines, their versions and events, workers, the catalog's apps, the log and the duties of a region."""

from __future__ import annotations

from alembic import op

from services.machine_store.queries import load

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_AMOUNTS = (
    "shared_cpu_millicores",
    "performance_cpu_millicores",
    "memory_bytes",
    "disk_bytes",
    "gpus_a10",
    "gpus_l40s",
    "gpus_a100_40gb",
    "gpus_a100_80gb",
)

_FITS = ",".join(
    f"CONSTRAINT {name}_fits CHECK (reserved_{name} >= 0 AND reserved_{name} <= capacity_{name})" for name in _AMOUNTS
)

_TABLES = (
    # One row. Whoever writes to the log locks it first, so revisions follow one another as the commits do.
    """
    CREATE TABLE counter (
        singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
        revision bigint NOT NULL DEFAULT 0,
        purged_revision bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
    """,
    "INSERT INTO counter DEFAULT VALUES",
    """
    CREATE TABLE apps (
        id text PRIMARY KEY,
        name text NOT NULL,
        organization_slug text NOT NULL,
        internal_numeric_id integer GENERATED ALWAYS AS IDENTITY,
        network text NOT NULL,
        app_role text NOT NULL,
        home_cell text NOT NULL,
        created_at timestamptz NOT NULL,
        deleted_at timestamptz,
        revision bigint NOT NULL
    )
    """,
    "CREATE UNIQUE INDEX apps_name ON apps (name) WHERE deleted_at IS NULL",
    f"""
    CREATE TABLE workers (
        id text PRIMARY KEY,
        number integer NOT NULL UNIQUE,
        zone text NOT NULL,
        address text NOT NULL,
        driver text NOT NULL,
        host_dedication_id text NOT NULL,
        cordoned boolean NOT NULL DEFAULT false,
        status smallint NOT NULL,
        journal_id text NOT NULL,
        revision bigint NOT NULL,
        {"".join(f"capacity_{name} bigint NOT NULL," for name in _AMOUNTS)}
        {"".join(f"reserved_{name} bigint NOT NULL DEFAULT 0," for name in _AMOUNTS)}
        {_FITS}
    ) WITH (fillfactor = 25, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)
    """,
    # Apart from workers: signs of life wait for no batch and no batch waits for them.
    """
    CREATE TABLE heartbeats (
        worker_id text PRIMARY KEY REFERENCES workers (id),
        at timestamptz NOT NULL
    ) WITH (fillfactor = 50)
    """,
    """
    CREATE TABLE journals (
        worker_id text NOT NULL REFERENCES workers (id),
        journal_id text NOT NULL,
        last_sequence bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (worker_id, journal_id)
    ) WITH (fillfactor = 25)
    """,
    # `details` is a MachineRecord of the fields that have no column: what no statement checks or changes. No foreign
    # key to workers, which are never deleted: checking it costs as much as the whole insert.
    """
    CREATE TABLE machines (
        id text PRIMARY KEY,
        app_id text NOT NULL,
        app_name text NOT NULL,
        name text NOT NULL,
        region text NOT NULL,
        state smallint NOT NULL,
        desired smallint NOT NULL,
        generation bigint NOT NULL,
        instance_id text NOT NULL,
        worker_id text NOT NULL,
        worker_number integer NOT NULL,
        leaving_worker_id text NOT NULL DEFAULT '',
        reserved bigint[] NOT NULL,
        leaving_reserved bigint[] NOT NULL DEFAULT '{}',
        host_status smallint NOT NULL,
        reason text NOT NULL DEFAULT '',
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        created_revision bigint NOT NULL,
        revision bigint NOT NULL,
        details bytea NOT NULL
    ) WITH (fillfactor = 70)
    """,
    "CREATE UNIQUE INDEX machines_name ON machines (app_id, name) WHERE state <> 10",
    "CREATE INDEX machines_of_app ON machines (app_id, created_revision)",
    "CREATE INDEX machines_on_worker ON machines (worker_id) WHERE state <> 10",
    "CREATE INDEX machines_leaving_worker ON machines (leaving_worker_id) WHERE leaving_worker_id <> ''",
    # Rows never change: a log entry names its version, so the log can show a whole machine as it was.
    """
    CREATE TABLE versions (
        machine_id text NOT NULL,
        instance_id text NOT NULL,
        created_at timestamptz NOT NULL,
        config bytea NOT NULL,
        spec bytea NOT NULL,
        parts bytea NOT NULL,
        PRIMARY KEY (machine_id, instance_id)
    )
    """,
    """
    CREATE TABLE machine_events (
        machine_id text NOT NULL,
        id text NOT NULL,
        type text NOT NULL,
        status text NOT NULL,
        source text NOT NULL,
        at timestamptz NOT NULL,
        request bytea,
        PRIMARY KEY (machine_id, id)
    )
    """,
    """
    CREATE TABLE idempotency_keys (
        app_id text NOT NULL,
        key text NOT NULL,
        fingerprint bytea NOT NULL,
        machine_id text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (app_id, key)
    )
    """,
    "CREATE INDEX idempotency_keys_age ON idempotency_keys USING brin (created_at)",
    # A machine's entry has the columns of its row and of its event, a worker's or an app's its row as JSON in `record`.
    """
    CREATE TABLE log (
        revision bigint PRIMARY KEY,
        kind smallint NOT NULL,
        id text NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        record jsonb,
        app_id text,
        app_name text,
        name text,
        region text,
        state smallint,
        desired smallint,
        generation bigint,
        instance_id text,
        worker_id text,
        worker_number integer,
        leaving_worker_id text,
        reserved bigint[],
        leaving_reserved bigint[],
        host_status smallint,
        reason text,
        created_at timestamptz,
        updated_at timestamptz,
        details bytea,
        event_id text,
        event_type text,
        event_status text,
        event_source text,
        event_at timestamptz,
        event_request bytea
    )
    """,
    """
    CREATE TABLE duties (
        duty text PRIMARY KEY,
        holder text NOT NULL,
        term bigint NOT NULL,
        expires_at timestamptz NOT NULL
    )
    """,
)


def upgrade() -> None:
    connection = op.get_bind()
    for statement in (*_TABLES, *load("functions").values()):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    raise NotImplementedError("a region's data are not taken away: restore a backup instead")
