"""Dump and restore, on the server of the test run."""

import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shared.db.dump import dump, restore
from stepway.postgres.embedded import EmbeddedPostgres, PostgresError
from tests.postgres import server


@pytest.fixture
def databases() -> Iterator[tuple[str, str]]:
    """One with content and one without."""
    test_server = server()
    full, empty = test_server.clone("template0"), test_server.clone("template0")
    with psycopg.connect(full) as connection:
        connection.execute("CREATE SCHEMA platform")
        connection.execute("CREATE TABLE platform.model (id int PRIMARY KEY, name text UNIQUE, data bytea, doc jsonb)")
        connection.execute(
            "INSERT INTO platform.model SELECT i, 'Ä'||i, decode(md5(i::text), 'hex'), jsonb_build_object('i', i)"
            " FROM generate_series(1, 1000) i"
        )
    yield full, empty
    for url in (full, empty):
        test_server.drop(url)


def rows(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT * FROM platform.model ORDER BY id").fetchall()


def test_round_trip(databases: tuple[str, str], tmp_path: Path) -> None:
    full, empty = databases
    dump(full, tmp_path / "db.dump")
    restore(empty, tmp_path / "db.dump")
    assert len(rows(empty)) == 1000
    assert rows(empty) == rows(full)
    with psycopg.connect(empty) as connection, pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute("INSERT INTO platform.model VALUES (2000, 'Ä1')")
    assert [path.name for path in tmp_path.iterdir()] == ["db.dump"]
    assert stat.S_IMODE((tmp_path / "db.dump").stat().st_mode) == 0o600


def test_urls_of_sqlalchemy_are_understood(databases: tuple[str, str], tmp_path: Path) -> None:
    dump(databases[0].replace("postgresql://", "postgresql+psycopg://"), tmp_path / "db.dump")
    restore(databases[1].replace("postgresql://", "postgresql+psycopg://"), tmp_path / "db.dump")
    assert len(rows(databases[1])) == 1000


@pytest.mark.parametrize("statement", ["CREATE TABLE mine ()", "CREATE SCHEMA mine", "CREATE TYPE mine AS ENUM ('a')"])
def test_restore_refuses_a_database_that_holds_anything(
    databases: tuple[str, str], tmp_path: Path, statement: str
) -> None:
    dump(databases[0], tmp_path / "db.dump")
    with psycopg.connect(databases[1]) as connection:
        connection.execute(statement.encode())
    with pytest.raises(PostgresError, match=r"not empty \(it holds mine\)"):
        restore(databases[1], tmp_path / "db.dump")


def test_restore_of_a_cut_file_changes_nothing(databases: tuple[str, str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "db.dump", tmp_path / "cut.dump"
    dump(databases[0], whole)
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(PostgresError, match="pg_restore failed"):
        restore(databases[1], cut)
    restore(databases[1], whole)  # the database is still empty, or this would be refused


def test_restore_of_what_is_no_dump_says_so(databases: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear database,")
    with pytest.raises(PostgresError, match="pg_restore failed"):
        restore(databases[1], tmp_path / "letter.txt")
    with pytest.raises(PostgresError, match="There is no dump"):
        restore(databases[1], tmp_path / "missing")


def test_failed_dump_leaves_the_earlier_one_and_no_secret(databases: tuple[str, str], tmp_path: Path) -> None:
    target = tmp_path / "db.dump"
    target.write_text("the earlier one")
    url = databases[0].replace("stepway@", "nobody-knows:planted-secret@")
    with pytest.raises(PostgresError, match="pg_dump failed") as caught:
        dump(url, target)
    assert "planted-secret" not in str(caught.value)
    assert target.read_text() == "the earlier one"
    assert list(tmp_path.iterdir()) == [target]


def test_password_is_not_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in pg_dump's place notes how it was called."""
    spy = tmp_path / "pg_dump"
    spy.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments; echo "$PGPASSWORD" > {tmp_path}/password\n')
    spy.chmod(0o700)
    monkeypatch.setattr("stepway.postgres.programs.program", lambda name: spy)
    dump("postgresql://someone:planted-secret@example.invalid/base", tmp_path / "db.dump")
    assert "planted-secret" not in (tmp_path / "arguments").read_text()
    assert "host=example.invalid" in (tmp_path / "arguments").read_text()
    assert (tmp_path / "password").read_text() == "planted-secret\n"


def test_moves_between_two_embedded_servers(tmp_path: Path, databases: tuple[str, str]) -> None:
    """As for another major version: an old data directory, a new one."""
    new = EmbeddedPostgres(tmp_path / "new")
    try:
        url = new.start()
        dump(databases[0], tmp_path / "db.dump")
        restore(url, tmp_path / "db.dump")
        assert rows(url) == rows(databases[0])
    finally:
        new.stop()
