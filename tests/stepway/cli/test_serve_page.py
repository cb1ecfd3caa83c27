"""docs/workflow-server.md holds what it says: its files are served, its commands print what it prints, its settings are all."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from stepway.runner.settings import SETTINGS
from tests.stepway.cli.serve_process import Program, environment, until
from tests.stepway.cli.test_serve import free_port

PAGE = Path(__file__).parents[3] / "docs" / "workflow-server.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Command(NamedTuple):
    line: str
    printed: str


def files() -> dict[str, str]:
    texts = [text for language, text in BLOCK.findall(PAGE.read_text()) if language == "python"]
    named = {re.match(r"# (\w+\.py)\n", text): text for text in texts}
    return {found[1]: text for found, text in named.items() if found}


def commands() -> Iterator[Command]:
    for language, text in BLOCK.findall(PAGE.read_text()):
        if language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                yield Command(*part.partition("\n")[::2])


class Terminal:
    """Runs the page's commands. A server goes on beside the next ones, until the next server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._bin = folder / "bin"
        self._bin.mkdir()
        self._server: Program | None = None
        for name, program in (("stepway", "-m stepway"), ("python", "")):
            path = self._bin / name
            path.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
            path.chmod(0o755)

    def run(self, line: str) -> str:
        """What it prints, with the page's port."""
        real = line.replace("localhost:8080", f"localhost:{self._port}")
        if line.startswith("stepway serve") and "--check" not in line and "--host" not in line:
            return self._serve(real).replace(str(self._port), "8080")
        path = {"PATH": f"{self._bin}:{environment()['PATH']}"}
        ended = subprocess.run(
            ["bash", "-c", real], cwd=self._folder, env=environment(**path), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        return ended.stdout

    def _serve(self, line: str) -> str:
        self.stop()
        arguments = ["-m", *line.split()]
        self._server = Program(arguments, self._folder, WORKFLOWS_PY_SERVER_PORT=str(self._port))
        assert self._server.url
        return self._server.printed

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            try:
                assert server.end(signal.SIGTERM) == 0, server.printed
            finally:
                server.process.kill()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    for name, text in files().items():
        (tmp_path / name).write_text(text)
    made = Terminal(tmp_path)
    yield made
    made.stop()


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed")
def test_the_commands_print_what_the_page_says(terminal: Terminal) -> None:
    for command in commands():
        shows(terminal, command)


def shows(terminal: Terminal, command: Command) -> None:
    printed = terminal.run(command.line)
    if " -m " in command.line:  # looks for some seconds at what goes on, and may see it too early
        until(lambda: command.printed in (printed, terminal.run(command.line)))
    else:
        assert printed.splitlines() == command.printed.splitlines(), command.line


def test_all_settings_are_told() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(one.flag, one.variable, one.usual or "", one.help) for one in SETTINGS]


def test_the_links_lead_somewhere() -> None:
    text = PAGE.read_text()
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (PAGE.parent / target.partition("#")[0]).exists(), target
