"""How values go into the tables and come back: payloads as bytes, names as text, many of them as one array.

PostgreSQL's text takes no NUL and no lone surrogate, which JSON and Python's strings may hold. Payloads are kept as bytes;
names, which people query, as text in which those (and the backslash) stand as `\\uXXXX`.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import AsyncConnection, pq
from psycopg.adapt import Dumper

from stepway.runner.store import Handler, Status

_ODD = re.compile("[\\\\\0\ud800-\udfff]")
_ESCAPED = re.compile(r"\\u([0-9a-f]{4})")
_HEAD = struct.Struct("!iiIii").pack
_SIZE = struct.Struct("!i").pack
_BIG = struct.Struct("!q").pack
_NULL = _SIZE(-1)

HANDLER = "handler_id, workflow_name, run_id, status, error, result, started_at, updated_at, completed_at"


def text(name: str) -> str:
    return name if _ODD.search(name) is None else _ODD.sub(lambda odd: f"\\u{ord(odd[0]):04x}", name)


def name(stored: str) -> str:
    return stored if "\\" not in stored else _ESCAPED.sub(lambda one: chr(int(one[1], 16)), stored)


def blob(payload: str | None) -> bytes | None:
    return None if payload is None else payload.encode("utf-8", "surrogatepass")


def payload(stored: bytes | None) -> str | None:
    return None if stored is None else read(stored)


def read(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogatepass")


def json_blob(value: Mapping[str, Any] | None) -> bytes | None:
    return None if value is None else json.dumps(value, separators=(",", ":")).encode()


def handler(row: Sequence[Any]) -> Handler:
    """From the columns `HANDLER`."""
    handler_id, workflow, run_id, status, error, result, started, updated, completed = row[:9]
    known: Status = status
    return Handler(
        name(handler_id), name(workflow), name(run_id), known, _utc(started), _utc(updated),
        None if completed is None else _utc(completed), None if error is None else name(error),
        None if result is None else json.loads(result),
    )  # fmt: skip


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC)


class Array:
    """A column of a batch, as one parameter."""

    __slots__ = ("items",)
    oid = 0
    element = 0

    def __init__(self, items: Sequence[bytes | None]) -> None:
        self.items = items

    def dump(self) -> bytes:
        if not self.items:
            return struct.pack("!iiI", 0, 0, self.element)
        parts = [_HEAD(1, 1, self.element, len(self.items), 1)]
        for item in self.items:
            if item is None:
                parts.append(_NULL)
            else:
                parts += (_SIZE(len(item)), item)
        return b"".join(parts)


class Blobs(Array):
    oid, element = 1001, 17


class Texts(Array):
    """Of names, which it escapes."""

    oid, element = 1009, 25

    def __init__(self, names: Sequence[str | None]) -> None:
        super().__init__([None if one is None else text(one).encode() for one in names])


class Bigs(Array):
    oid, element = 1016, 20

    def __init__(self, numbers: Sequence[int | None]) -> None:
        super().__init__([None if one is None else _BIG(one) for one in numbers])


def _dumper(kind: type[Array]) -> type[Dumper]:
    class ArrayDumper(Dumper):
        format = pq.Format.BINARY
        oid = kind.oid

        def dump(self, obj: Array) -> bytes:
            return obj.dump()

    return ArrayDumper


_DUMPERS = {kind: _dumper(kind) for kind in (Blobs, Texts, Bigs)}


def teach(connection: AsyncConnection) -> None:
    """Let the connection take arrays of ours as parameters."""
    for kind, dumper in _DUMPERS.items():
        connection.adapters.register_dumper(kind, dumper)
