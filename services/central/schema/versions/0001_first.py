"""The catalog, its feed, secrets, and the mirror of the regions."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE feed (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id text NOT NULL,
    position bigint NOT NULL CHECK (position >= 0),
    oldest bigint NOT NULL CHECK (oldest BETWEEN 0 AND position)
);
COMMENT ON TABLE feed IS 'One row. Writers lock it before anything else: so positions are in the order of commits.';
COMMENT ON COLUMN feed.id IS 'Tells this feed from that of another database.';
COMMENT ON COLUMN feed.position IS 'Position of the newest change.';
COMMENT ON COLUMN feed.oldest IS 'Changes after this position are all kept.';
INSERT INTO feed (id, position, oldest) VALUES (substr(replace(gen_random_uuid()::text, '-', ''), 1, 12), 0, 0);

CREATE TABLE catalog_log (
    position bigint PRIMARY KEY,
    kind text NOT NULL,
    key text NOT NULL,
    deleted boolean NOT NULL,
    payload jsonb,
    at double precision NOT NULL,
    superseded_at bigint CHECK (superseded_at > position)
);
COMMENT ON TABLE catalog_log IS 'Every change with the record after it; so it is also the catalog as of any position.';
COMMENT ON COLUMN catalog_log.superseded_at IS 'Position of the next change of the same record.';
COMMENT ON COLUMN catalog_log.at IS 'Unix seconds.';
CREATE UNIQUE INDEX catalog_log_newest ON catalog_log (kind, key) WHERE superseded_at IS NULL;
CREATE INDEX catalog_log_superseded ON catalog_log (superseded_at) WHERE superseded_at IS NOT NULL;

CREATE TABLE organizations (
    id text PRIMARY KEY,
    internal_numeric_id integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    slug text NOT NULL UNIQUE,
    name text NOT NULL,
    type text NOT NULL,
    paid_plan boolean NOT NULL,
    billable boolean NOT NULL,
    created_at double precision NOT NULL
);

CREATE TABLE limits (
    organization_id text PRIMARY KEY REFERENCES organizations,
    cpus integer CHECK (cpus >= 0),
    memory_mb integer CHECK (memory_mb >= 0),
    gpus integer CHECK (gpus >= 0),
    machines integer CHECK (machines >= 0)
);
COMMENT ON TABLE limits IS 'What one machine may have, and how many machines there may be; NULL is no bound.';

CREATE TABLE apps (
    id text PRIMARY KEY,
    internal_numeric_id integer GENERATED ALWAYS AS IDENTITY UNIQUE,
    name text NOT NULL UNIQUE,
    organization_id text NOT NULL REFERENCES organizations,
    network text NOT NULL,
    role text NOT NULL,
    home_cell text NOT NULL,
    status text NOT NULL CHECK (status IN ('pending', 'deployed', 'suspended')),
    secrets_version integer NOT NULL DEFAULT 0,
    created_at double precision NOT NULL
);
CREATE INDEX apps_of_organization ON apps (organization_id);

CREATE TABLE secrets (
    app_id text NOT NULL REFERENCES apps ON DELETE CASCADE,
    name text NOT NULL,
    sealed bytea NOT NULL,
    digest text NOT NULL,
    version integer NOT NULL,
    created_at double precision NOT NULL,
    updated_at double precision NOT NULL,
    PRIMARY KEY (app_id, name)
);

CREATE TABLE image_aliases (
    name text PRIMARY KEY,
    repository text NOT NULL,
    digest text NOT NULL,
    updated_at double precision NOT NULL
);

CREATE TABLE mirror_cursors (
    cell text PRIMARY KEY,
    revision bigint NOT NULL
);
COMMENT ON COLUMN mirror_cursors.revision IS 'Everything of the cell up to this revision of its log is in the mirror.';

CREATE TABLE mirror_records (
    cell text NOT NULL,
    kind text NOT NULL,
    key text NOT NULL,
    revision bigint NOT NULL,
    app_id text,
    payload jsonb NOT NULL,
    PRIMARY KEY (cell, kind, key)
);
CREATE INDEX mirror_records_of_app ON mirror_records (app_id, kind) WHERE app_id IS NOT NULL;
CREATE INDEX mirror_records_by_key ON mirror_records (kind, key);

CREATE TABLE mirror_uploads (
    cell text NOT NULL,
    revision bigint NOT NULL,
    kind text NOT NULL,
    key text NOT NULL,
    payload jsonb NOT NULL,
    PRIMARY KEY (cell, revision, kind, key)
);
COMMENT ON TABLE mirror_uploads IS 'Snapshots of cells that are still being sent, page by page.';
"""


def upgrade() -> None:
    """Make the first tables."""
    op.execute(TABLES)
