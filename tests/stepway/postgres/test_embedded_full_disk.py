"""The embedded PostgreSQL on a disk without room: a small tmpfs, which only root may mount."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from stepway.postgres.embedded import EmbeddedPostgres, PostgresError

Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a disk of so many MiB."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{size}"
        folder.mkdir()
        options = f"size={size}m,mode=0700"
        command = ["mount", "-t", "tmpfs", "-o", options, "stepway-test", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {result.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all room."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
    return filler


def test_no_room_for_the_first_start(disk: Disk) -> None:
    folder = disk(20)
    with pytest.raises(PostgresError, match=r"No space left on device.*The disk is full"):
        EmbeddedPostgres(folder / "db").start()
    assert list(folder.iterdir()) == []


def test_no_room_for_a_later_start(disk: Disk) -> None:
    folder = disk(120)
    postgres = EmbeddedPostgres(folder / "db")
    with psycopg.connect(postgres.start()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.stop()
    filler = fill(folder)
    try:
        with pytest.raises(PostgresError, match=r"FATAL: .*No space left on device.*The disk is full"):
            postgres.start()
        assert not postgres.running
        filler.unlink()
        with psycopg.connect(postgres.start()) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    finally:
        postgres.stop()
