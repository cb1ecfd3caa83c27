"""A small Hugging Face hub: model info, tree, paths-info and files, with gates, revisions and faults.

`with Hub() as hub: hub.add("org/name", {"config.json": b"{}"})`, then use `hub.url` as the endpoint. Files that end as
weights do are stored as LFS: their `resolve` route redirects to another path with the content's sha256.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.serving import Body, Fault, Server, send

LFS = (".safetensors", ".gguf", ".bin", ".pt", ".onnx", ".h5")


@dataclass
class Repository:
    """`branches` maps branches and tags to commits, `commits` a commit to its files."""

    name: str
    gated: bool = False
    private: bool = False
    granted: set[str] = field(default_factory=set)  # tokens that may read it
    info: dict[str, object] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Mapping[str, Body]] = field(default_factory=dict)


class Hub(Server):
    """`tokens` are the credentials that the hub knows."""

    def __init__(self, *, lfs_url: str | None = None) -> None:
        super().__init__()
        self.tokens: set[str] = set()
        self._repositories: dict[str, Repository] = {}
        self._lfs: dict[str, Body] = {}
        self._digests: dict[int, tuple[str, str]] = {}
        self.lfs_url = lfs_url  # where large files are served, this hub if None

    def add(
        self,
        name: str,
        files: Mapping[str, Body],
        *,
        revision: str = "main",
        gated: bool = False,
        private: bool = False,
        granted: set[str] | None = None,
        **info: object,
    ) -> str:
        """Commit files to a branch or tag; the commit. `info` are further members of the model's description."""
        repository = self._repositories.setdefault(name, Repository(name))
        repository.gated, repository.private = gated, private
        repository.granted |= granted or set()
        repository.info.update(info)
        self.tokens |= repository.granted
        listing = json.dumps({path: self._sha256(body) for path, body in files.items()}, sort_keys=True)
        commit = hashlib.sha1(f"{name} {revision} {listing}".encode()).hexdigest()
        repository.branches[revision] = commit
        repository.commits[commit] = files
        for path, body in files.items():
            if path.endswith(LFS):
                self._lfs[self._sha256(body)] = body
        return commit

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        path = unquote(urlsplit(request.path).path).strip("/")
        if path.startswith("lfs/"):
            body = self._lfs[path.removeprefix("lfs/")]
            self.send_file(request, body, {"ETag": '"stored"', "Accept-Ranges": "bytes"}, fault)
        elif path.startswith("api/models/"):
            self._describe(request, path.removeprefix("api/models/"))
        elif "/resolve/" in path:
            name, _, rest = path.partition("/resolve/")
            self._resolve(request, name, rest, fault)
        else:
            _refuse(request, 404, "RepoNotFound", "Repository not found")

    def _describe(self, request: BaseHTTPRequestHandler, path: str) -> None:
        name, kind, rest = path, "revision", "main"
        for route in ("revision", "tree", "paths-info"):
            if f"/{route}/" in path:
                name, _, rest = path.partition(f"/{route}/")
                kind = route
        repository = self._visible(request, name)
        if repository is None:
            return
        commit = repository.branches.get(rest, rest)
        if commit not in repository.commits:
            _refuse(request, 404, "RevisionNotFound", f"Invalid rev id: {rest}")
            return
        files = repository.commits[commit]
        if kind != "revision":
            entries = [{**self._entry(path, body), "type": "file", "path": path} for path, body in files.items()]
            _send_json(request, entries)
            return
        with_sizes = "blobs=" in request.path
        siblings = [
            {"rfilename": path, **(self._entry(path, body, sibling=True) if with_sizes else {})}
            for path, body in files.items()
        ]
        _send_json(
            request,
            {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
                **repository.info,
            },
        )

    def _resolve(self, request: BaseHTTPRequestHandler, name: str, rest: str, fault: Fault | None) -> None:
        repository = self._visible(request, name)
        if repository is None:
            return
        if repository.gated and _token(request) not in repository.granted:
            status = 403 if _token(request) in self.tokens else 401
            _refuse(request, status, "GatedRepo", f"Access to model {name} is restricted")
            return
        revision = max(
            (known for known in (*repository.branches, *repository.commits) if rest.startswith(f"{known}/")),
            key=len,
            default=None,
        )
        if revision is None:
            _refuse(request, 404, "RevisionNotFound", "Invalid rev id")
            return
        commit = repository.branches.get(revision, revision)
        path = rest.removeprefix(f"{revision}/")
        if path not in repository.commits[commit]:
            _refuse(request, 404, "EntryNotFound", "Entry not found")
            return
        body = repository.commits[commit][path]
        if path.endswith(LFS):
            headers = {
                "Location": f"{self.lfs_url or self.url}/lfs/{self._sha256(body)}",
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{self._sha256(body)}"',
                "X-Linked-Size": str(_size(body)),
            }
            send(request, 302, b"", headers)
            return
        headers = {"ETag": f'"{self._git_oid(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        self.send_file(request, body, headers, fault)

    def _visible(self, request: BaseHTTPRequestHandler, name: str) -> Repository | None:
        """The repository, or None after the refusal was sent."""
        token = _token(request)
        if token is not None and token not in self.tokens:
            send(request, 401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
            return None
        repository = self._repositories.get(name)
        if repository is None or (repository.private and token not in repository.granted):
            _refuse(request, 404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _entry(self, path: str, body: Body, *, sibling: bool = False) -> dict[str, object]:
        entry: dict[str, object] = {"size": _size(body), "blobId" if sibling else "oid": self._git_oid(body)}
        if path.endswith(LFS):
            name = "sha256" if sibling else "oid"
            entry["lfs"] = {name: self._sha256(body), "size": _size(body), "pointerSize": 134}
        return entry

    def _sha256(self, body: Body) -> str:
        return self._hashes(body)[0]

    def _git_oid(self, body: Body) -> str:
        return self._hashes(body)[1]

    def _hashes(self, body: Body) -> tuple[str, str]:
        if id(body) not in self._digests:
            sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % _size(body))
            if isinstance(body, bytes):
                sha256.update(body)
                sha1.update(body)
            else:
                with body.open("rb") as file:
                    while data := file.read(1 << 20):
                        sha256.update(data)
            self._digests[id(body)] = (sha256.hexdigest(), sha1.hexdigest())
        return self._digests[id(body)]


def _size(body: Body) -> int:
    return len(body) if isinstance(body, bytes) else body.stat().st_size


def _token(request: BaseHTTPRequestHandler) -> str | None:
    scheme, _, token = (request.headers.get("Authorization") or "").partition(" ")
    return token if scheme == "Bearer" else None


def _refuse(request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
    send(request, status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})


def _send_json(request: BaseHTTPRequestHandler, value: object) -> None:
    send(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})
