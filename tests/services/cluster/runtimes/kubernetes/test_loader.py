"""The loader's script as a process of its own, against a real HTTP server that cuts, refuses, redirects and lies."""

import hashlib
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.models import ModelFile
from tests.services.cluster.runtimes.kubernetes.support import LOADER, digest_of, file_of

TOKEN = "loader-token-of-the-endpoint"
CONTENTS = {"config.json": b"{}", "weights/model.gguf": bytes(range(256)) * 20_000, "empty": b""}
FILES = [file_of(path, content) for path, content in CONTENTS.items()]
DIGEST = digest_of(FILES)
PRIVATE = ".stepway"


class Platform(ThreadingHTTPServer):
    """What the platform serves. `script` holds faults for the next answers with bytes, one each."""

    daemon_threads = True

    def __init__(self, host: str) -> None:
        super().__init__((host, 0), Handler)
        self.script: list[str] = []
        self.sessions = 0
        self.session = ""
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization
        self.files = FILES
        self.elsewhere = ""
        self.contents = dict(CONTENTS)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/bytes/session"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Platform

    def do_POST(self) -> None:
        fault = self.server.script.pop(0) if self.server.script and self.server.script[0].startswith("session") else ""
        if fault == "session 503":
            return self._answer(503, b"", {"Retry-After": "0"})
        if self.headers["Authorization"] != f"Bearer {TOKEN}" or fault == "session revoked":
            return self._answer(401, b"")
        self.server.sessions += 1
        self.server.session = f"session-{self.server.sessions}"
        files = [{**file.model_dump(), "href": f"files/{number}"} for number, file in enumerate(self.server.files)]
        return self._answer(200, json.dumps({"token": self.server.session, "expires_in": 60, "files": files}).encode())

    def do_GET(self) -> None:
        server, given = self.server, self.headers.get("Range")
        server.asked.append((self.path, given, self.headers.get("Authorization")))
        file = server.files[int(self.path.rpartition("/")[2])]
        content = server.contents[file.path]
        fault = server.script.pop(0) if server.script and file.path.endswith("gguf") else ""
        if fault == "redirect":
            return self._answer(302, b"", {"Location": f"{server.elsewhere}{self.path}"})
        if self.headers.get("Authorization") not in (f"Bearer {server.session}", None) or fault == "expired":
            return self._answer(401, b"")
        if fault == "503":
            return self._answer(503, b"", {"Retry-After": "0"})
        if fault == "lie":
            content = bytes(len(content))
        start = int(given.removeprefix("bytes=").rstrip("-")) if given and fault != "no range" else 0
        part = content[start:]
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.send_response(206 if start else 200)
        for name, value in {"Content-Length": str(len(part)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(part[: len(part) // 3])
            self.close_connection = True
            return None
        self.wfile.write(part)
        return None

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Platform]:
    server = Platform(host)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def platform() -> Iterator[Platform]:
    with serving() as server:
        yield server


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(TOKEN)
    return tmp_path / "token"


def arguments(mode: str, target: Path, token_file: Path, **more: str) -> list[str]:
    given = {"target": str(target), "digest": DIGEST, "token-file": str(token_file), **more}
    return [sys.executable, "-I", "-B", str(LOADER), mode, *(f"--{name}={value}" for name, value in given.items())]


def fetch(platform: Platform, target: Path, token_file: Path, **more: str) -> subprocess.CompletedProcess[str]:
    target.mkdir(exist_ok=True)
    command = arguments("fetch", target, token_file, **{"url": platform.url, "patience": "5", **more})
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def whole(target: Path) -> bool:
    return all((target / path).read_bytes() == content for path, content in CONTENTS.items())


def test_brings_every_file_and_says_how_far_it_is(platform: Platform, tmp_path: Path, token_file: Path) -> None:
    done = fetch(platform, tmp_path / "m", token_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert whole(tmp_path / "m")
    total = sum(file.size for file in FILES)
    assert json.loads(done.stdout.splitlines()[-1]) == {"done": total, "total": total, "file": ""}
    assert [path.name for path in (tmp_path / "m" / PRIVATE).iterdir()] == [DIGEST]
    assert oct((tmp_path / "m" / "config.json").stat().st_mode)[-3:] == "444"
    assert TOKEN not in done.stdout + done.stderr

    asked = len(platform.asked)
    again = fetch(platform, tmp_path / "m", token_file)
    assert (again.returncode, len(platform.asked), platform.sessions) == (0, asked, 1)


@pytest.mark.parametrize(
    ("script", "sessions"),
    [
        (["cut", "cut", "cut"], 1),
        (["503", "cut", "503"], 1),
        (["expired", "cut"], 2),
        (["cut", "no range"], 1),
        (["lie", "cut"], 1),
        (["session 503", "session 503", "cut"], 1),
    ],
)
def test_goes_on_after_faults(
    platform: Platform, tmp_path: Path, token_file: Path, script: list[str], sessions: int
) -> None:
    platform.script = list(script)
    done = fetch(platform, tmp_path / "m", token_file)
    assert (done.returncode, done.stderr) == (0, "")
    assert whole(tmp_path / "m")
    assert platform.sessions == sessions
    assert platform.script == []
    if script[-1] == "cut":
        last = [given for path, given, _ in platform.asked if path.endswith("/1")][-1]
        assert last is not None  # the rest only
        assert last.startswith("bytes=")


def test_a_redirect_to_elsewhere_gets_no_token(platform: Platform, tmp_path: Path, token_file: Path) -> None:
    with serving() as other:
        platform.elsewhere = f"http://127.0.0.1:{other.server_address[1]}"
        platform.script = ["redirect"]
        done = fetch(platform, tmp_path / "m", token_file)
        assert (done.returncode, done.stderr) == (0, "")
        assert [authorization for _, _, authorization in other.asked] == [None]
    assert whole(tmp_path / "m")


def test_a_process_that_was_killed_is_gone_on_from(platform: Platform, tmp_path: Path, token_file: Path) -> None:
    partial = tmp_path / "m" / PRIVATE
    partial.mkdir(parents=True)
    number = sorted(CONTENTS).index("weights/model.gguf")
    (partial / f"{number}-{FILES[1].sha256[:16]}").write_bytes(CONTENTS["weights/model.gguf"][:1_000_000])
    assert fetch(platform, tmp_path / "m", token_file).returncode == 0
    assert whole(tmp_path / "m")
    assert ("/bytes/files/1", "bytes=1000000-") in [asked[:2] for asked in platform.asked]


@pytest.mark.parametrize(
    ("script", "files", "code", "words"),
    [
        (["session revoked"], FILES, 3, "refuses the model's files (status 401)"),
        (["lie"] * 3, FILES, 4, "weights/model.gguf has another checksum"),
        ([], [*FILES[:2]], 4, "not that of the model"),
        (["503"] * 50, FILES, 6, "No byte came for 1 seconds"),
    ],
)
def test_gives_up_with_a_sentence(
    platform: Platform,
    tmp_path: Path,
    token_file: Path,
    script: list[str],
    files: list[ModelFile],
    code: int,
    words: str,
) -> None:
    platform.script, platform.files = list(script), files
    done = fetch(platform, tmp_path / "m", token_file, patience="1")
    assert done.returncode == code
    assert words in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert not (tmp_path / "m" / PRIVATE / DIGEST).exists()


@pytest.mark.parametrize("path", ["../out", "/etc/out", "a/../../out", f"{PRIVATE}/out", "a//b", "a\\b"])
def test_files_stay_in_the_folder(platform: Platform, tmp_path: Path, token_file: Path, path: str) -> None:
    platform.files = [file_of(path, b"x")]
    platform.contents[path] = b"x"
    done = fetch(platform, tmp_path / "m", token_file, digest=digest_of(platform.files))
    assert done.returncode == 4
    assert "outside the model's folder" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_full_volume_is_told_before_it_is_full(platform: Platform, tmp_path: Path, token_file: Path) -> None:
    huge = ModelFile(path="huge", size=2**60, sha256=hashlib.sha256(b"").hexdigest())
    platform.files = [huge]
    done = fetch(platform, tmp_path / "m", token_file, digest=digest_of([huge]))
    assert done.returncode == 5
    assert "MiB are missing, and the volume has room for" in done.stderr


# --- receiving


@contextmanager
def receiving(tmp_path: Path, token_file: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The script beside its manifest, as in a pod."""
    place = tmp_path / "loader"
    place.mkdir(exist_ok=True)
    (place / "loader.py").write_text(LOADER.read_text())
    (place / "manifest.json").write_text(json.dumps([file.model_dump() for file in FILES]))
    command = arguments("receive", tmp_path / "m", token_file, host="127.0.0.1", port="0")
    command[3] = str(place / "loader.py")
    (tmp_path / "m").mkdir(exist_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())["listening"]
    finally:
        process.kill()
        process.communicate()


def ask(port: int, method: str, path: str, body: bytes = b"", token: str = TOKEN) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"X-Stepway-Token": token})
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        return answer.status, found
    finally:
        connection.close()


def test_receives_in_pieces_over_a_restart(tmp_path: Path, token_file: Path) -> None:
    paths = sorted(CONTENTS)
    big = paths.index("weights/model.gguf")
    content = CONTENTS[paths[big]]
    with receiving(tmp_path, token_file) as (_, port):
        assert ask(port, "GET", "/v1/files", token="wrong")[0] == 401
        status, found = ask(port, "GET", "/v1/files")
        assert (status, [file["path"] for file in found["files"]]) == (200, paths)
        assert ask(port, "PUT", f"/v1/files/{big}?offset=0", content[:1000]) == (200, {"have": 1000, "complete": False})
        assert ask(port, "PUT", f"/v1/files/{big}?offset=0", content[:1000])[0] == 409
        assert ask(port, "PUT", f"/v1/files/{big}?offset=1000", content)[0] == 409  # more than there is
        assert ask(port, "PUT", "/v1/files/99?offset=0", b"x")[0] == 404
        assert ask(port, "POST", "/v1/done") == (409, {"complete": False})
    with receiving(tmp_path, token_file) as (process, port):
        assert ask(port, "GET", "/v1/files")[1]["files"][big]["have"] == 1000
        status, said = ask(port, "PUT", f"/v1/files/{big}?offset=1000", bytes(len(content) - 1000))
        assert (status, said["have"]) == (422, 0)
        for number, path in enumerate(paths):
            assert ask(port, "PUT", f"/v1/files/{number}?offset=0", CONTENTS[path])[1]["complete"] is True
        assert ask(port, "POST", "/v1/done") == (200, {"complete": True})
        assert process.wait(10) == 0
    assert whole(tmp_path / "m")
    assert (tmp_path / "m" / PRIVATE / DIGEST).exists()
