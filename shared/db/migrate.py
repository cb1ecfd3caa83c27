"""Brings a database to the newest migration. `migrations/` is the history; Alembic does the work."""

from importlib.resources import files

from alembic import command
from alembic.config import Config


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
