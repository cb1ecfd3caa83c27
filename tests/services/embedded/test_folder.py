"""The data directory: private, held by one, and the machine that several may share."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import pytest

from services.assembly.process import StartError
from services.embedded.folder import (
    DataFolder,
    InUse,
    MachineUse,
    Places,
    machine_cluster_id,
    write_private,
)
from shared.settings import Settings


def places(root: Path, **more: object) -> Places:
    return Places.of(Settings.model_validate({"data_dir": root, **more}))


def test_a_directory_is_made_private_and_held_by_one(tmp_path: Path) -> None:
    root = tmp_path / "new" / "data"
    first = DataFolder(places(root))
    first.open()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    with pytest.raises(InUse, match="uses the data directory"):
        DataFolder(places(root)).open()
    first.close()
    DataFolder(places(root)).open()


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StartError, match="cannot be used: file exists"):
        DataFolder(places(tmp_path / "data")).open()


def test_processes_that_share_a_machine_agree_on_its_id(tmp_path: Path) -> None:
    shared = [places(tmp_path / str(number), machine_dir=tmp_path / "machine") for number in range(16)]
    for one in shared:
        one.root.mkdir()
    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(machine_cluster_id, shared))
    assert len(ids) == 1
    assert not [path for path in (tmp_path / "machine").iterdir() if path.name.startswith(".")]


def test_the_id_outlives_the_machines_folder(tmp_path: Path) -> None:
    here = places(tmp_path)
    first = machine_cluster_id(here)
    (here.machine / "cluster-id").unlink()
    assert machine_cluster_id(here) == first
    (here.machine / "cluster-id").write_text("half an i")
    with pytest.raises(StartError, match="is damaged"):
        machine_cluster_id(here)


def test_an_id_of_a_shared_machine_wins_over_the_copy(tmp_path: Path) -> None:
    here = places(tmp_path)
    machine_cluster_id(here)
    other = UUID(int=7)
    (here.machine / "cluster-id").write_text(str(other))
    assert machine_cluster_id(here) == other
    assert here.cluster_id.read_text() == str(other)


def test_only_whoever_leaves_a_machine_last_is_told_so(tmp_path: Path) -> None:
    one, two = MachineUse(tmp_path), MachineUse(tmp_path)
    assert not one.is_last()  # it has not begun
    one.begin()
    two.begin()
    assert not one.is_last()
    one.end()
    assert two.is_last()
    two.end()


def test_of_two_that_leave_at_once_one_is_the_last(tmp_path: Path) -> None:
    one, two = MachineUse(tmp_path), MachineUse(tmp_path)
    one.begin()
    two.begin()
    assert [one.is_last(), two.is_last()] == [False, True]
    one.end()
    two.end()


def test_a_private_file_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_private(file, "one")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    write_private(file, "two", keep=True)
    assert file.read_text() == "one"
    write_private(file, "two")
    assert file.read_text() == "two"
    assert list(tmp_path.iterdir()) == [file]
