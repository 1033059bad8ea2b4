"""Migrations of the centre's database, run by alembic."""
