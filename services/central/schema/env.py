"""Alembic's environment: it writes the migrations' SQL, which the database module runs over its own connection."""

from __future__ import annotations

from alembic import context

context.configure(dialect_name="postgresql", transactional_ddl=False, dialect_opts={"paramstyle": "named"})
context.run_migrations()
