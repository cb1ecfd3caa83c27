"""Brings a database to the newest migration. `migrations/` is the history; Alembic does the work."""

import time
from importlib.resources import files
from typing import Literal

import psycopg
import structlog
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

LOOK_EVERY = 1.0  # seconds

log = structlog.get_logger(__name__)


def config(url: str) -> Config:
    made = Config()
    made.set_main_option("script_location", str(files("migrations")))
    made.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    made.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return made


def upgrade(url: str) -> None:
    """Migrate to the head; `url` is a libpq URL. Safe to run in several processes at once."""
    command.upgrade(config(url), "head")


def check(url: str) -> None:
    """Raise when the tables in code and in the database differ."""
    command.check(config(url))


def compare(url: str) -> Literal["current", "behind", "ahead"]:
    """The database's schema against this code's. `ahead`: of a later version, with which this one still works."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        known = connection.execute("SELECT to_regclass('platform.alembic_version')").fetchone()
        if known is None or known[0] is None:
            return "behind"
        row = connection.execute("SELECT version_num FROM platform.alembic_version").fetchone()
    scripts = ScriptDirectory.from_config(config(url))
    present = row[0] if row else None
    if present == scripts.get_current_head():
        return "current"
    return "behind" if present is None or present in {one.revision for one in scripts.walk_revisions()} else "ahead"


def wait_for_schema(url: str) -> None:
    """Until somebody has migrated the database to this version, or a later one."""
    while True:
        try:
            if compare(url) != "behind":
                return
            log.info("schema_behind")
        except psycopg.OperationalError as error:
            log.warning("database_away", error=type(error).__name__)
        time.sleep(LOOK_EVERY)
