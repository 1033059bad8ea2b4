"""Nothing: leases, and metadata that change without a version, lie in `details` of their machine."""

from __future__ import annotations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No statement checks or changes them, so they need no column."""


def downgrade() -> None:
    raise NotImplementedError("a region's data are not taken away: restore a backup instead")
