"""Processes that end with their starter, and folders that the next run clears."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed.processes import Folder, Processes, StartError

KILLED = """
import sys
from tests.testbed.processes import Folder
print(Folder("test-bed").path, flush=True)
sys.stdin.read()
"""


def test_a_folder_of_a_killed_run_is_removed_and_one_in_use_is_kept() -> None:
    kept = Folder("test-bed")
    child = subprocess.Popen([sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    path = Path(child.stdout.readline().strip())
    assert path.is_dir()
    child.kill()
    child.wait()
    later = Folder("test-bed")
    assert not path.exists()
    assert kept.path.is_dir()
    kept.close()
    later.close()
    assert not kept.path.exists()


def test_a_server_that_ends_early_is_named_with_its_last_words(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.start("short", [sys.executable, "-c", "print('no port is free')"])
    with pytest.raises(StartError, match=r"short ended before it served\n== short\nno port is free"):
        processes.wait("it served", lambda: False, seconds=20)


def test_a_server_that_ignores_the_polite_signal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.testbed.processes.STOP_SECONDS", 0.2)
    processes = Processes(tmp_path)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    processes.start("stubborn", [sys.executable, "-c", stubborn])
    processes.wait("it was up", lambda: "up" in processes.logs(), seconds=20)
    processes.stop_all()
    assert processes.ended() == ["stubborn"]
    processes.restart("stubborn")
    assert processes.ended() == []
    processes.signal("stubborn", signal.SIGKILL)
    processes.stop_all()


def test_no_port_is_given_to_two_processes() -> None:
    """Each range is small, so that both would come upon the other's."""
    code = (
        "import sys; from tests.testbed import processes; processes._PORTS = range(9_000, 9_040)\n"
        "print(*processes.free_ports(8), flush=True); sys.stdin.read()"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        given = [port for one in running if one.stdout is not None for port in one.stdout.readline().split()]
    finally:
        for one in running:
            one.communicate()
    assert len(given) == len(set(given)) == 24
