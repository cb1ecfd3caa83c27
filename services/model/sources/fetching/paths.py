"""Paths that come from archives, hubs and URLs, judged before anything is named after them."""

import re
import unicodedata
from urllib.parse import unquote

MAX_PATH = 1024
MAX_DEPTH = 32
MAX_SEGMENT = 255  # bytes


class UnsafePath(ValueError):
    """The path could leave the model's folder or clash with another."""


def safe_path(path: str) -> str:
    """The relative path with forward slashes, unchanged but for `./`. Raises `UnsafePath`."""
    while path.startswith("./"):
        path = path[2:]
    segments = path.split("/")
    if not path or len(path) > MAX_PATH or len(segments) > MAX_DEPTH:
        raise UnsafePath("a path is empty, too long or too deep")
    if not path.isprintable() or "\\" in path or re.match(r"[A-Za-z]:", path):
        raise UnsafePath("a path has characters that are not allowed")
    for segment in segments:
        if segment in ("", ".", ".."):
            raise UnsafePath("a path is absolute or goes upwards")
        try:
            size = len(segment.encode())
        except UnicodeEncodeError:
            raise UnsafePath("a path is not valid Unicode") from None
        if size > MAX_SEGMENT:
            raise UnsafePath("a name in a path is too long")
    return path


class PathSet:
    """Paths of one model: no two may be the same file on any system, and none may be another's folder."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add(self, path: str) -> str:
        """The safe path. Raises `UnsafePath` if it is unsafe or clashes with one before."""
        safe = safe_path(path)
        folded = unicodedata.normalize("NFC", safe).casefold()
        above = folded.split("/")
        folders = {"/".join(above[:depth]) for depth in range(1, len(above))}
        if folded in self._files or folded in self._folders or folders & self._files:
            raise UnsafePath("two paths are the same, or one is inside the other")
        self._files.add(folded)
        self._folders |= folders
        return safe


def name_from_url(path: str) -> str:
    """A plain file name from a URL's path: letters, digits and `._-`, at most 128 characters."""
    name = unquote(path.rsplit("/", 1)[-1], errors="replace")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-")[-128:].lstrip("._-")
    return name or "model"
