"""The supervisor's parts on their own."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from services.cluster.runtimes.local import outcome, processes
from services.cluster.runtimes.local.child import hold_port
from services.cluster.runtimes.local.logfile import MAX_LINE, NAME, LogWriter
from services.cluster.runtimes.local.probe import Probe


def test_no_two_hold_one_port() -> None:
    held = [hold_port() for _ in range(300)]
    try:
        assert len({port for _, port in held}) == 300
    finally:
        for holder, _ in held:
            holder.close()


def test_a_held_port_is_the_servers_to_listen_at() -> None:
    holder, port = hold_port()
    with holder, socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
        pass


def test_identities_tell_processes_apart() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    assert processes.alive(me)
    assert processes.Identity.read(list(me)) == me
    assert not processes.alive(me._replace(started="1"))
    assert not processes.alive(me._replace(boot="another"))
    assert processes.send(me._replace(started="1"), signal.SIGKILL) is False


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["/bin/sleep", "30"])
    identity = processes.identify(child.pid)
    assert identity is not None
    assert processes.send(identity, signal.SIGKILL) is True
    deadline = time.monotonic() + 5
    while processes.alive(identity):
        assert time.monotonic() < deadline
    assert child.wait() == -signal.SIGKILL
    assert processes.send(identity, signal.SIGKILL) is False


@pytest.mark.parametrize(
    "value", [None, [], [1, "1", "b"], ["2", "1", "b"], [2, 1, "b"], {"pid": 2}, [2, "1"], [-5, "1", "b"]]
)
def test_what_is_no_identity_is_none(value: object) -> None:
    assert processes.Identity.read(value) is None


def test_log_lines_are_whole_timed_and_without_the_secret(tmp_path: Path) -> None:
    log = LogWriter(tmp_path, 10**6, "s3cret")
    for piece in (b"one\ntw", b"o s3c", b"ret\r\n\xff\0bad\n", b"x" * (MAX_LINE + 10) + b"\nlast"):
        log.feed(piece)
    log.note("told")
    lines = (tmp_path / NAME).read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == [
        "one", "two [secret]", "\ufffd\ufffdbad", "x" * MAX_LINE, "x" * 10, "last", "[supervisor] told",
    ]  # fmt: skip
    assert list(log.last)[:3] == ["one", "two [secret]", "\ufffd\ufffdbad"]
    assert "[supervisor] told" not in log.last


def test_a_log_that_cannot_be_written_does_not_stop_the_worker(tmp_path: Path) -> None:
    log = LogWriter(tmp_path, 10, "")
    (tmp_path / f"{NAME}.1").mkdir()  # the cut fails
    log.feed(b"one long line\ntwo\n")
    assert list(log.last) == ["one long line", "two"]


def probe_once(answer: bytes | None, timeout: float = 0.3) -> bool | None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                if answer is None:
                    time.sleep(timeout * 2)  # the silence that is tested
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        probe = Probe(server.getsockname()[1], "/health", timeout)
        while probe.result is None:
            probe.step()
        thread.join()
        return probe.result


@pytest.mark.parametrize(
    ("answer", "healthy"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.0 204 \r\n\r\n", True),
        (b"HTTP/1.1 503 Loading\r\n\r\n", False),
        (b"HTTP/1.1 301 Moved\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False),
        (b"HTTP/1.1", False),
        (b"", False),
        (None, False),
    ],
)
def test_a_probe_wants_a_2xx_in_time(answer: bytes | None, healthy: bool) -> None:
    assert probe_once(answer) is healthy


def test_a_probe_of_a_closed_port_is_unhealthy_at_once() -> None:
    holder, port = hold_port()
    with holder:
        probe = Probe(port, "/health", 10)
        start = time.monotonic()
        while probe.result is None:
            probe.step()
        assert probe.result is False
        assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("code", "log", "reason", "words"),
    [
        (0, [], "exited", "exit code 0"),
        (-11, [], "signal", "SIGSEGV"),
        (-9, [], "signal", "SIGKILL"),
        (127, [], "cannot_start", "could not be started"),
        (1, ["ggml: failed to allocate buffer"], "out_of_memory", "exit code 1"),
        (1, ["MemoryError"], "out_of_memory", "exit code 1"),
    ],
)
def test_an_end_is_explained(code: int, log: list[str], reason: str, words: str) -> None:
    found = outcome.explain(code, log)
    assert found[0] == reason
    assert words in found[1]


def test_a_kill_while_the_kernel_ran_out_of_memory_is_told_as_such() -> None:
    assert outcome.explain(-9, [], killed_for_memory=True)[0] == "out_of_memory"
    assert outcome.explain(-15, [], killed_for_memory=True)[0] == "signal"
    assert outcome.oom_kills() >= 0


def test_the_supervisor_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import services.cluster.runtimes.local.supervisor\n"
        "print(sorted({'pydantic', 'asyncio', 'subprocess', 'typing_extensions', 'http', 'ssl', 'logging'} & set(sys.modules)))"
    )
    root = str(Path(__file__).parents[5])
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program, root], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
