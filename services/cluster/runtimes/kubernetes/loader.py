"""Brings a model's files into a folder, inside a pod. Runs as a plain script in any image with Python 3.9 or newer:
only the standard library is imported. It reaches the pod in a ConfigMap; `pods` says how it is called.

    loader.py fetch   --url=URL --target=/models --digest=HEX     fetches, and ends
    loader.py receive --target=/models --digest=HEX               is sent the files on port 8080, and ends

Both keep what is there already, write to `.stepway/` first, check every file's sha256 and the manifest's digest (the
sha256 of the lines `<sha256>  <path>\\n`, sorted by path), and end by leaving the mark `.stepway/<digest>`.

What `fetch` asks for, over HTTP(S):
    POST URL, `Authorization: Bearer <the endpoint's token>`, no body
        200 {"token": "…", "expires_in": seconds, "files": [{"path", "size", "sha256", "href"}]}
        401, 403, 404, 410: the token is revoked, or the model is gone; the loader gives up
    GET href (absolute, or relative to URL), `Authorization: Bearer <token from above>` when it is of URL's origin,
        `Range: bytes=N-` to go on
        206 with the rest, 200 with all of it, 401 or 403: the loader exchanges its token anew
        a redirect is followed, without the token where it leads to another origin
    429 and 5xx anywhere: tried again, not before `Retry-After` seconds

What `receive` answers to, with the endpoint's token in `X-Stepway-Token`; the manifest is `manifest.json` beside us:
    GET /v1/files                 200 {"files": [{"path", "size", "have", "complete"}]}
    PUT /v1/files/N?offset=BYTES  the next bytes of file N; 200 {"have", "complete"}; 409 {"have"}: not the next ones;
                                  422: all bytes are there and the checksum is wrong, begin again
    POST /v1/done                 200 when every file is complete, and the loader ends; 409 otherwise

Said on stdout: one JSON object per line, {"done", "total", "file"}. The exit code: 0 done, 3 refused, 4 the bytes are
wrong, 5 no room, 6 no progress for too long; the reason is a sentence on stderr and in the termination message.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import errno
import hashlib
import hmac
import http.client
import http.server
import json
import os
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

REFUSED, WRONG_BYTES, NO_ROOM, NO_PROGRESS = 3, 4, 5, 6
TOKEN_FILE = Path("/etc/stepway/token/token")
TERMINATION_LOG = Path("/dev/termination-log")
PRIVATE = ".stepway"
CHUNK = 1024 * 1024
TIMEOUT = 30.0
CONNECTIONS = 4
PORT = 8080
TRIES_OF_WRONG_BYTES = 3


class GiveUp(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Again(Exception):
    """A passing fault: worth another try, not before `after` seconds."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


def say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Folder:
    """The files of one manifest below a folder, each complete or partly there."""

    def __init__(self, target: Path, digest: str, files: list[dict[str, Any]]) -> None:
        self.target = target
        self.private = target / PRIVATE
        self.mark = self.private / digest
        self.files = checked(files, digest)
        self.total = sum(file["size"] for file in self.files)
        self._said = 0.0
        self._lock = threading.Lock()
        self._have = [0] * len(self.files)

    def prepare(self) -> None:
        self.private.mkdir(mode=0o755, parents=True, exist_ok=True)
        for number in range(len(self.files)):
            self._have[number] = self._size(number)
        missing = self.total - sum(self._have)
        status = os.statvfs(self.target)
        free = status.f_bavail * status.f_frsize
        if missing > free:
            raise GiveUp(NO_ROOM, f"{missing >> 20} MiB are missing, and the volume has room for {free >> 20} MiB.")

    def path(self, number: int) -> Path:
        return self.target.joinpath(*self.files[number]["path"].split("/"))

    def partial(self, number: int) -> Path:
        return self.private / (f"{number}-{self.files[number]['sha256'][:16]}")

    def complete(self, number: int) -> bool:
        try:
            return bool(self.path(number).stat().st_size == self.files[number]["size"])
        except OSError:
            return False

    def _size(self, number: int) -> int:
        if self.complete(number):
            return int(self.files[number]["size"])
        try:
            return self.partial(number).stat().st_size
        except OSError:
            return 0

    def digest_so_far(self, number: int) -> Any:
        digest = hashlib.sha256()
        try:
            with self.partial(number).open("rb") as data:
                while True:
                    chunk = data.read(CHUNK)
                    if not chunk:
                        return digest
                    digest.update(chunk)
        except FileNotFoundError:
            return digest

    def have(self, number: int, size: int) -> None:
        """Note how much of a file is there, and say it once a second."""
        with self._lock:
            self._have[number] = size
            done, now = sum(self._have), time.monotonic()
            if now - self._said >= 1.0 or done == self.total:
                self._said = now
                say({"done": done, "total": self.total, "file": self.files[number]["path"]})

    def finish_file(self, number: int, digest: Any) -> None:
        """Put a whole file in its place, if its bytes are right; if not, forget them and raise GiveUp."""
        file, partial = self.files[number], self.partial(number)
        if digest.hexdigest() != file["sha256"]:
            partial.unlink()
            self.have(number, 0)
            raise GiveUp(WRONG_BYTES, f"{file['path']} has another checksum than the model that was deployed.")
        self.path(number).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with partial.open("rb") as data:
            os.fsync(data.fileno())
        partial.chmod(0o444)
        partial.replace(self.path(number))

    def finish(self) -> None:
        self.mark.touch()
        say({"done": self.total, "total": self.total, "file": ""})


def checked(files: list[dict[str, Any]], digest: str) -> list[dict[str, Any]]:
    """The files in the manifest's order, if they are the manifest's and stay inside the folder."""
    try:
        known = sorted(files, key=lambda file: str(file["path"]))
        lines = "".join(f"{file['sha256']}  {file['path']}\n" for file in known)
        for file in known:
            file["size"] = int(file["size"])
    except (KeyError, TypeError, ValueError):
        raise GiveUp(WRONG_BYTES, "The list of files is malformed.") from None
    if hashlib.sha256(lines.encode()).hexdigest() != digest:
        raise GiveUp(WRONG_BYTES, "The list of files is not that of the model that was deployed.")
    for file in known:
        path = file["path"]
        outside = any(part in ("", ".", "..", PRIVATE) for part in path.split("/"))
        if outside or file["size"] < 0 or "\\" in path or "\0" in path:
            raise GiveUp(WRONG_BYTES, "A file of the model lies outside the model's folder.")
    return known


# --- fetch


class _Redirects(urllib.request.HTTPRedirectHandler):
    """The token goes to the origin that it is for, and to no other; nothing falls back to plain http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise GiveUp(REFUSED, "The server redirects to an address without TLS.")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and origin(newurl) != origin(req.full_url):
            request.remove_header("Authorization")
        return request


class Server:
    """The platform's address for bytes. A session is renewed when it is refused or about to end."""

    def __init__(self, url: str, token: str, authorities: Path | None) -> None:
        self.url = url
        self._token = token
        context = ssl.create_default_context()
        if authorities is not None and authorities.exists():
            context.load_verify_locations(cafile=str(authorities))
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _Redirects()
        )
        self._lock = threading.Lock()
        self._session = ""
        self._ends = 0.0
        self.files: list[dict[str, Any]] = []

    def session(self, refused: str | None = None) -> str:
        """A token for the files; a new one if this one was `refused`."""
        with self._lock:
            if not self._session or self._session == refused or time.monotonic() > self._ends:
                with self._open(self.url, self._token, data=b"") as answer:
                    said = json.loads(answer.read(64 * CHUNK))
                self._session, self.files = str(said["token"]), list(said["files"])
                self._ends = time.monotonic() + 0.8 * float(said.get("expires_in", 300))
            return self._session

    def get(self, href: str, offset: int) -> Any:
        """The answer, which begins at `offset` if its status is 206."""
        url = urllib.parse.urljoin(self.url, href)
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise GiveUp(REFUSED, "A file's address is none of HTTP.")
        own = origin(url) == origin(self.url)
        session = self.session()
        try:
            return self._open(url, session if own else None, offset=offset)
        except GiveUp:
            self.session(refused=session)  # raises if we are no longer welcome at all
            raise Again("the session was refused") from None

    def _open(self, url: str, token: str | None, data: bytes | None = None, offset: int = 0) -> Any:
        headers = {"User-Agent": "stepway-loader", "Accept-Encoding": "identity"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if offset:
            headers["Range"] = f"bytes={offset}-"
        request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 (http and https only: see get)
        try:
            return self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403, 404, 410):
                raise GiveUp(REFUSED, f"The platform refuses the model's files (status {error.code}).") from None
            after = error.headers.get("Retry-After", "")
            raise Again(f"status {error.code}", float(after) if after.isdigit() else 0.0) from None


def origin(url: str) -> Any:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


PASSING = (Again, OSError, http.client.HTTPException, ValueError, KeyError)


class Patience:
    """Ends the waiting when nothing has moved for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._moved = time.monotonic()
        self._pause = 0.2

    def moved(self) -> None:
        self._moved, self._pause = time.monotonic(), 0.2

    def wait(self, error: BaseException) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise GiveUp(NO_ROOM, "The volume is full.") from None
        if time.monotonic() - self._moved > self.seconds:
            raise GiveUp(NO_PROGRESS, f"No byte came for {self.seconds:.0f} seconds ({describe(error)}).") from None
        time.sleep(max(self._pause, min(getattr(error, "after", 0.0), 60.0)))
        self._pause = min(2 * self._pause, 10.0)


def describe(error: BaseException) -> str:
    reason = getattr(error, "reason", error)
    return f"{type(reason).__name__}: {str(reason)[:120]}"


def fetch(url: str, target: Path, digest: str, patience: float, token_file: Path) -> None:
    if (target / PRIVATE / digest).exists():
        return
    server = Server(url, token_file.read_text().strip(), Path(__file__).with_name("ca.crt"))
    waiting = Patience(patience)
    while True:
        try:
            server.session()
            break
        except PASSING as error:
            waiting.wait(error)
    folder = Folder(target, digest, server.files)
    folder.prepare()
    pool = concurrent.futures.ThreadPoolExecutor(CONNECTIONS)
    try:
        jobs = [pool.submit(fetch_file, server, folder, number, patience) for number in range(len(folder.files))]
        for job in concurrent.futures.as_completed(jobs):
            job.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after a fault nobody waits for the others
    folder.finish()


def fetch_file(server: Server, folder: Folder, number: int, patience: float) -> None:
    if folder.complete(number):
        return
    waiting, wrong = Patience(patience), 0
    digest = folder.digest_so_far(number)
    while True:
        try:
            digest = fetch_rest(server, folder, number, digest, waiting)
            folder.finish_file(number, digest)
            return
        except GiveUp as error:
            wrong += 1
            if error.code != WRONG_BYTES or wrong >= TRIES_OF_WRONG_BYTES:
                raise
            digest = hashlib.sha256()
        except PASSING as error:
            waiting.wait(error)
            digest = folder.digest_so_far(number)


def fetch_rest(server: Server, folder: Folder, number: int, digest: Any, waiting: Patience) -> Any:
    """Append what is missing; returns the digest of the whole. Raises what the connection raises."""
    size, partial = folder.files[number]["size"], folder.partial(number)
    offset = partial.stat().st_size if partial.exists() else 0
    if offset > size:
        partial.unlink()
        return fetch_rest(server, folder, number, hashlib.sha256(), waiting)
    if offset == size:
        partial.touch()
        return digest
    server.session()
    href = {file["path"]: file["href"] for file in server.files}[folder.files[number]["path"]]
    with server.get(href, offset) as answer, partial.open("ab") as out:
        if offset and answer.status != 206:
            out.truncate(0)
            digest, offset = hashlib.sha256(), 0
        elif offset and not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
            raise Again("the server sent another range than was asked for")
        while offset < size:
            chunk = answer.read(min(CHUNK, size - offset))
            if not chunk:
                raise Again("the connection ended early")
            out.write(chunk)
            digest.update(chunk)
            offset += len(chunk)
            waiting.moved()
            folder.have(number, offset)
    return digest


# --- receive


class Receiver(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: Any, folder: Folder, token: str) -> None:
        super().__init__(address, _Handler)
        self.folder = folder
        self.token = token
        self.locks = [threading.Lock() for _ in folder.files]
        self.digests: dict[int, Any] = {}
        self.fault: GiveUp | None = None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_GET(self) -> None:
        if self._allowed("/v1/files"):
            folder = self.server.folder
            files = [
                {
                    "path": file["path"],
                    "size": file["size"],
                    "have": folder._size(number),
                    "complete": folder.complete(number),
                }
                for number, file in enumerate(folder.files)
            ]
            self._answer(200, {"files": files})

    def do_PUT(self) -> None:
        match = re.match(r"^/v1/files/(\d{1,6})\?offset=(\d{1,18})$", self.path)
        if not self._allowed(None):
            return
        if match is None or int(match[1]) >= len(self.server.folder.files):
            self._answer(404, {})
            return
        number, offset, length = int(match[1]), int(match[2]), int(self.headers.get("Content-Length", 0))
        with self.server.locks[number]:
            self._take(number, offset, length)

    def do_POST(self) -> None:
        if self._allowed("/v1/done"):
            folder = self.server.folder
            whole = all(folder.complete(number) for number in range(len(folder.files)))
            if whole:
                folder.finish()
            self._answer(200 if whole else 409, {"complete": whole})
            if whole:
                threading.Thread(target=self.server.shutdown, daemon=True).start()

    def _take(self, number: int, offset: int, length: int) -> None:
        folder = self.server.folder
        have, size = folder._size(number), folder.files[number]["size"]
        if folder.complete(number) or offset != have or offset + length > size:
            self._discard(length)
            self._answer(409, {"have": have, "complete": folder.complete(number)})
            return
        digest = self.server.digests.pop(number, None) or folder.digest_so_far(number)
        try:
            with folder.partial(number).open("ab") as out:
                while length > 0:
                    chunk = self.rfile.read(min(CHUNK, length))
                    if not chunk:
                        self.close_connection = True
                        return
                    out.write(chunk)
                    digest.update(chunk)
                    have += len(chunk)
                    length -= len(chunk)
                    folder.have(number, have)
            if have == size:
                folder.finish_file(number, digest)
            else:
                self.server.digests[number] = digest
        except GiveUp as error:
            self._answer(422, {"message": str(error), "have": 0})
            return
        except OSError as error:
            self.server.fault = GiveUp(NO_ROOM, f"The volume cannot be written: {error.strerror}.")
            self.close_connection = True
            threading.Thread(target=self.server.shutdown, daemon=True).start()
            return
        self._answer(200, {"have": have, "complete": have == size})

    def _allowed(self, path: str | None) -> bool:
        given = self.headers.get("X-Stepway-Token", "")
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            self.close_connection = True
            self._answer(401, {})
            return False
        if path is not None and self.path != path:
            self._answer(404, {})
            return False
        return True

    def _discard(self, length: int) -> None:
        while length > 0:
            length -= len(self.rfile.read(min(CHUNK, length))) or length

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stdout is for progress."""


def receive(target: Path, digest: str, token_file: Path, host: str, port: int) -> None:
    files = json.loads(Path(__file__).with_name("manifest.json").read_text())
    folder = Folder(target, digest, files)
    folder.prepare()
    server = Receiver((host, port), folder, token_file.read_text().strip())
    say({"listening": server.server_address[1]})
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    if server.fault is not None:
        raise server.fault


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("mode", choices=["fetch", "receive"])
    parser.add_argument("--url", default="")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--token-file", type=Path, default=TOKEN_FILE)
    parser.add_argument("--patience", type=float, default=600.0)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 (the pod's own addresses)
    parser.add_argument("--port", type=int, default=PORT)
    given = parser.parse_args()
    try:
        if given.mode == "fetch":
            fetch(given.url, given.target, given.digest, given.patience, given.token_file)
        else:
            receive(given.target, given.digest, given.token_file, given.host, given.port)
    except GiveUp as error:
        sys.stderr.write(f"{error}\n")
        try:
            TERMINATION_LOG.write_text(str(error))
        except OSError:
            pass
        return error.code
    return 0


if __name__ == "__main__":
    # threads may still wait for connections that nobody needs any more
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
