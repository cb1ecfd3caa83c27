"""The tests' own server: shared by processes, gone after the last of them."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.postgres import TestServer, server
from tests.stepway.postgres.conftest import REPOSITORY, eventually

WORKER = """
import sys, psycopg
from tests.postgres import server
calls = []
def migrate(url):
    calls.append(url)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE made ()")
test_server = server()
test_server.make_template("shared", migrate)
print(test_server._folder, test_server.url, len(calls), test_server.clone("shared"), sep="|", flush=True)
sys.stdin.readline()
"""


def migrate(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE note (text text)")
        connection.execute("INSERT INTO note VALUES ('from the template')")


@pytest.fixture
def template() -> str:
    name = f"template_{uuid.uuid4().hex}"
    server().make_template(name, migrate)
    return name


def notes(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT text FROM note").fetchall()


def test_clones_are_like_the_template_and_apart(template: str) -> None:
    first, second = server().clone(template), server().clone(template)
    with psycopg.connect(first) as connection:
        connection.execute("INSERT INTO note VALUES ('only here')")
    assert notes(second) == [("from the template",)]
    assert len(notes(first)) == 2


def test_drop_ends_connections_that_are_left(template: str) -> None:
    url = server().clone(template)
    with psycopg.connect(url):
        server().drop(url)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)
    server().drop(url)


def test_template_is_made_once(template: str) -> None:
    server().make_template(template, lambda url: pytest.fail("made twice"))


def test_migration_that_fails_is_tried_again() -> None:
    name = f"template_{uuid.uuid4().hex}"

    def fail(url: str) -> None:
        migrate(url)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        server().make_template(name, fail)
    server().make_template(name, migrate)
    assert notes(server().clone(name)) == [("from the template",)]


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes of one test run, as pytest-xdist makes them."""
    environment = {**os.environ, "PYTEST_XDIST_TESTRUNUID": uuid.uuid4().hex}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_workers_share_one_server_until_the_last_is_killed(workers: list[subprocess.Popen[str]]) -> None:
    said = [process.stdout.readline().strip().split("|") for process in workers if process.stdout]
    (folder, url, calls, clone), (other_folder, other_url, other_calls, other_clone) = said
    assert (folder, url) == (other_folder, other_url)
    assert url != server().url
    assert {calls, other_calls} == {"0", "1"}
    assert clone != other_clone
    workers[0].send_signal(signal.SIGKILL)
    workers[0].wait()
    psycopg.connect(other_clone).close()
    workers[1].send_signal(signal.SIGKILL)
    workers[1].wait()
    assert eventually(lambda: not Path(folder).exists())


def test_server_object_is_kept_for_the_process() -> None:
    assert isinstance(server(), TestServer)
    assert server() is server()
