"""Alembic's environment: one linear history over the schemas `platform`, `jobs` and `flow`."""

from typing import Any

from alembic import context
from sqlalchemy import create_engine, text

from services.app import tables
from shared.db.base import metadata
from shared.db.engine import driver_url

SCHEMAS = {"platform", "jobs", "flow"}
assert tables.jobs  # the import fills the metadata


def include_name(name: str | None, type_: str, _parents: Any) -> bool:
    return name in SCHEMAS if type_ == "schema" else True


def run() -> None:
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None
    engine = create_engine(driver_url(url))
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = '5s'"))
        for schema in sorted(SCHEMAS):
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            include_schemas=True,
            include_name=include_name,
            version_table_schema="platform",
            compare_type=True,
        )
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(5308417)"))  # two processes may start at once
            context.run_migrations()
    engine.dispose()


run()
