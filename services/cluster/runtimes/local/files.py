"""Small JSON files that many processes read and one writes. Standard library only: the supervisor uses it too."""

import json
import os
import threading
from pathlib import Path
from typing import Any


def write_private(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace the file in one step, with mode 0600. `durable` also survives a power cut."""
    # A thread that nobody waits for any more may still be writing while its successor begins.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: dict[str, Any], *, durable: bool = False) -> None:
    write_private(path, json.dumps(value, separators=(",", ":")).encode(), durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file; None if there is none, or if a power cut left it unreadable."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
