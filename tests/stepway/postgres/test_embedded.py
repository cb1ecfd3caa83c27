"""The embedded PostgreSQL in this process: starts, restarts, refusals."""

import os
import shutil
import stat
from pathlib import Path

import psycopg
import pytest

from stepway.postgres import programs
from stepway.postgres.embedded import EmbeddedPostgres, PostgresError
from stepway.postgres.folder import LOG_BYTES
from tests.stepway.postgres.conftest import processes_in, server_pid


def test_first_start_makes_a_database_for_text_of_all_languages(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    with psycopg.connect(postgres.start()) as connection:
        row = connection.execute(
            "SELECT current_user, current_database(), pg_encoding_to_char(encoding), lower('ÄΣ'),"
            " current_setting('data_checksums'), current_setting('listen_addresses')"
            " FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert row == ("stepway", "stepway", "UTF8", "äσ", "on", "")
    assert postgres.running
    others = stat.S_IMODE((tmp_path / "db").stat().st_mode) & 0o007
    assert others == 0


def test_restart_keeps_the_data(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.start()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.stop()
    assert not postgres.running
    with psycopg.connect(postgres.start()) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_stop_leaves_no_process_and_no_socket(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    postgres.start()
    assert processes_in(tmp_path / "db")
    postgres.stop()
    assert processes_in(tmp_path / "db") == []
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == [
        "lock",
        "pgdata",
        "postgres.log",
        "server.lock",
    ]


def test_stop_does_not_wait_for_busy_connections(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.start()) as busy:
        busy.execute("CREATE TABLE unfinished ()")
        postgres.stop()
        with pytest.raises(psycopg.OperationalError):
            busy.execute("SELECT 1")


@pytest.mark.parametrize(("durable", "fsync"), [(True, "on"), (False, "off")])
def test_only_durable_servers_wait_for_the_disk(tmp_path: Path, durable: bool, fsync: str) -> None:
    postgres = EmbeddedPostgres(tmp_path / "db", durable=durable)
    try:
        with psycopg.connect(postgres.start()) as connection:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                assert connection.execute("SELECT current_setting(%s)", [setting]).fetchone() == (fsync,)
    finally:
        postgres.stop()


def test_first_start_that_was_cut_off_is_made_anew(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    half = tmp_path / "db" / "pgdata.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with psycopg.connect(postgres.start()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not half.exists()


def test_second_instance_is_refused_and_the_first_goes_on(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    url = postgres.start()
    with pytest.raises(PostgresError, match="already running"):
        EmbeddedPostgres(tmp_path / "db").start()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_other_major_is_refused_and_left_alone(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    data = tmp_path / "db" / "pgdata"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(PostgresError, match=r"PostgreSQL 16.*PostgreSQL 18.*`stepway backup`.*`stepway restore`"):
        postgres.start()
    assert [path.name for path in (tmp_path / "db").rglob("*")] == ["pgdata", "PG_VERSION"]


def test_folder_of_something_else_is_refused_and_left_alone(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir(mode=0o755)
    (tmp_path / "db" / "thesis.txt").write_text("years of work")
    with pytest.raises(PostgresError, match="not empty"):
        postgres.start()
    assert [path.name for path in (tmp_path / "db").iterdir()] == ["thesis.txt"]
    assert stat.S_IMODE((tmp_path / "db").stat().st_mode) == 0o755


def test_modes_of_parent_folders_stay(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o700)
    postgres = EmbeddedPostgres(parent / "db")
    postgres.start()
    postgres.stop()
    assert stat.S_IMODE(parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["d" * 120, "o'hare, ltd é"])
def test_folder_whose_path_is_no_good_for_a_socket(tmp_path: Path, name: str) -> None:
    postgres = EmbeddedPostgres(tmp_path / name / "db")
    url = postgres.start()
    try:
        with psycopg.connect(url) as connection:
            socket_dir = Path(connection.info.host)
        assert len(str(socket_dir / ".s.PGSQL.5432")) < 100
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    finally:
        postgres.stop()
    assert not socket_dir.exists()


def test_variables_of_libpq_do_not_lead_astray(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGDATABASE", "elsewhere")
    with psycopg.connect(postgres.start()) as connection:
        assert connection.info.dbname == "stepway"


def test_server_sees_nothing_of_our_environment(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPWAY_MARKER", "planted-secret")
    postgres.start()
    assert b"planted-secret" not in Path("/proc", str(server_pid(tmp_path / "db")), "environ").read_bytes()


def test_long_log_is_put_aside_at_the_next_start(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    postgres.start()
    postgres.stop()
    log = tmp_path / "db" / "postgres.log"
    os.truncate(log, LOG_BYTES + 1)
    postgres.start()
    assert log.with_name("postgres.log.1").stat().st_size == LOG_BYTES + 1
    assert "ready to accept connections" in log.read_text()


def test_pid_file_that_names_a_strange_process_does_not_stop_the_start(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    postgres.start()
    pid_file = tmp_path / "db" / "pgdata" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    postgres.stop()
    # 1 is init: alive for as long as the test, and no PostgreSQL
    pid_file.write_text("\n".join(["1", *lines[1:]]) + "\n")
    pid_file.chmod(0o600)
    with psycopg.connect(postgres.start()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_platform_without_programs_is_told_of_database_url(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PostgresError, match=r"no embedded PostgreSQL for this platform.*DATABASE_URL"):
        postgres.start()
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize(
    ("there", "missing"),
    [(b"libz.so.1", b"libz.so.9"), (b"/lib64/ld-linux-x86-64.so.2", b"/lib64/ld-nowhere-86-64.so.2")],
)
def test_missing_libraries_are_named(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bytes, missing: bytes
) -> None:
    """The real program with another name of a library in its header: the system's own loader fails."""
    original = programs.program("postgres")
    if there not in original.read_bytes():
        pytest.skip(f"the program for this platform does not need {there.decode()}")
    damaged = tmp_path / "pginstall" / "bin" / "postgres"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(original.read_bytes().replace(there, missing[: len(there)]))
    shutil.copymode(original, damaged)
    monkeypatch.setattr(programs, "install_dir", lambda: tmp_path / "pginstall")
    with pytest.raises(PostgresError, match="zlib"):
        postgres.start()
    assert not (tmp_path / "db").exists()
