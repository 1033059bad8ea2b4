"""The machine-store: a region's truth, and the only service that touches PostgreSQL."""
