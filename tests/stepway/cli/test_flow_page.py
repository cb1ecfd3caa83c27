"""docs/flows.md holds what it says: its examples are accepted or refused, its commands print what it prints, and what it
gives to check signatures tells a delivered message from a forged one."""

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest

from services.flow.known import task_types
from shared.flows.faults import FlowFaults
from shared.flows.validation import accept
from stepway.cli.flow_files import mapping
from tests.stepway.cli.conftest import Run, Service

PAGE = Path(__file__).parents[3] / "docs" / "flows.md"
BLOCK = re.compile(r"(?:<!-- refused: (\S+) (\S+) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# What is another one each time: ids and times.
OWN = re.compile(r"wf-[a-z0-9]{8}|ex-[a-z0-9]{8}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIMES = (
    (re.compile(r"\(\d+\.\d s\)"), "(… s)"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "…"),
)


class Block(NamedTuple):
    """A block of the page; `path` and `code` where it says that it is refused."""

    path: str
    code: str
    language: str
    text: str


BLOCKS = [Block(*found.groups(default="")) for found in BLOCK.finditer(PAGE.read_text())]
EXAMPLES = [one for one in BLOCKS if one.language in ("yaml", "json")]


def body(example: Block) -> dict[str, Any]:
    return mapping(example.text.encode(), is_json=example.language == "json")


def title(example: Block) -> str:
    found = body(example)
    return f"{found.get('name') or found.get('title')}"


@pytest.mark.parametrize("example", EXAMPLES, ids=title)
def test_each_example_is_accepted_or_refused_as_the_page_says(example: Block) -> None:
    if not example.code:
        accept(body(example), task_types())
        return
    with pytest.raises(FlowFaults) as refused:
        accept(body(example), task_types())
    assert (example.path, example.code) in {(one.path, one.code) for one in refused.value.faults}


def test_both_ways_of_writing_say_the_same() -> None:
    same = [accept(body(one), task_types())[1] for one in EXAMPLES if title(one) == "measure"]
    assert len(same) == 2
    assert same[0].inputs == same[1].inputs
    assert [(one.type, one.inputs) for one in same[0].tasks] == [(one.type, one.inputs) for one in same[1].tasks]
    assert same[0].outputs == same[1].outputs


def test_the_links_lead_somewhere() -> None:
    text = PAGE.read_text()
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (PAGE.parent / target.partition("#")[0]).exists(), target


# ---- what is printed


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed")
def test_the_commands_print_what_the_page_says(home: Path, service: Service, tmp_path: Path) -> None:
    first = next(one for one in EXAMPLES if title(one) == "measure")
    (tmp_path / "measure.yaml").write_text(first.text)
    (tmp_path / "measure.json").write_text(json.dumps(body(first)))
    program = tmp_path / "bin" / "stepway"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m stepway "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "URL": service.url, "KEY": service.key,
        "STEPWAY_URL": service.url, "STEPWAY_KEY": service.key,
    }  # fmt: skip
    real: dict[str, str] = {}  # the ids of the page, and those of this run
    for command, expected in _commands():
        called = OWN.sub(lambda found: real.get(found[0], found[0]), command)
        ended = subprocess.run(
            ["bash", "-c", called], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        real.update(zip(OWN.findall(expected), OWN.findall(ended.stdout), strict=False))
        assert _plain(ended.stdout, {}) == _plain(expected, real), command


def _commands() -> Iterator[tuple[str, str]]:
    for block in BLOCKS:
        if block.language == "console":
            for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
                command, _, printed = part.partition("\n")
                yield command, printed


def _plain(text: str, real: Mapping[str, str]) -> list[str]:
    text = OWN.sub(lambda found: real.get(found[0], found[0]), text)
    for pattern, mark in TIMES:
        text = pattern.sub(mark, text)
    return text.strip().splitlines()


# ---- signatures


class Received(NamedTuple):
    headers: dict[str, str]
    body: bytes


@pytest.fixture
def receiver() -> Iterator[tuple[str, "queue.Queue[Received]"]]:
    """A receiver of webhooks, and what has come."""
    came: queue.Queue[Received] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.put(Received({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", came
        server.shutdown()
        thread.join()


def test_a_delivered_message_is_told_from_a_forged_one(
    run: Run, receiver: tuple[str, "queue.Queue[Received]"], tmp_path: Path
) -> None:
    url, came = receiver
    made = run("webhooks", "create", url, "--project", "default", "-e", "execution.completed", "-o", "json")
    assert made.code == 0, made.err
    secret = made.json["secret"]
    try:
        assert run("webhooks", "test", url).code == 0
        message = came.get(timeout=30)
    finally:
        run("webhooks", "delete", url, "--yes")
    late = Received({**message.headers, "webhook-timestamp": str(int(time.time()) - 3600)}, message.body)
    other = Received({**message.headers, "webhook-id": "msg_other"}, message.body)
    turned = Received(
        {**message.headers, "webhook-signature": f"v1,bm8= {message.headers['webhook-signature']}"}, message.body
    )
    for received, key, genuine in (
        (message, secret, True), (turned, secret, True), (Received(message.headers, message.body + b" "), secret, False),
        (other, secret, False), (late, secret, False), (message, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", False),
    ):  # fmt: skip
        assert _by_python(received, key) is genuine
        assert _by_shell(received, key, tmp_path) is genuine


def _by_python(message: Received, secret: str) -> bool:
    given: dict[str, Any] = {}
    exec(compile(next(one.text for one in BLOCKS if one.language == "python"), str(PAGE), "exec"), given)
    return bool(given["is_genuine"](secret, message.headers, message.body))


def _by_shell(message: Received, secret: str, folder: Path) -> bool:
    script, body = folder / "verify.sh", folder / "body"
    script.write_text(next(one.text for one in BLOCKS if one.language == "bash"))
    body.write_bytes(message.body)
    parts = [message.headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature")]
    ended = subprocess.run(
        ["bash", str(script), *parts, str(body)], env={**os.environ, "SECRET": secret}, capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert ended.stderr == ""
    return ended.returncode == 0 and ended.stdout == "genuine\n"
