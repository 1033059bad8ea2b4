"""Keys that sign tokens, and the tokens that are revoked."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE token_keys (
    id integer PRIMARY KEY CHECK (id > 0),
    public_key bytea NOT NULL,
    sealed bytea NOT NULL,
    created_at double precision NOT NULL,
    retired_at double precision
);
COMMENT ON TABLE token_keys IS 'The newest one signs. Ids are never given twice.';
COMMENT ON COLUMN token_keys.sealed IS 'The private key.';
COMMENT ON COLUMN token_keys.retired_at IS 'From then on, tokens that it signed are not valid any more.';

CREATE TABLE revocations (
    id text PRIMARY KEY,
    cell text NOT NULL,
    revoked_at double precision NOT NULL
);
COMMENT ON COLUMN revocations.cell IS 'Where it was revoked; empty for the centre.';
"""


def upgrade() -> None:
    """Make the tables of tokens."""
    op.execute(TABLES)
