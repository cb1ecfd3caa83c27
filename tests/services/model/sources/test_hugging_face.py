"""Models from a hub, over HTTP, with everything that goes wrong on the way."""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.model.sources.base import SourceContext, SourcePlan
from services.model.sources.fetching.partial import BUFFER
from services.model.sources.hugging_face import HuggingFace
from shared.contracts.models import Manifest, Source
from shared.jobs.outcomes import Permanent, Retry
from shared.objects import DirectoryStore, blob_key
from shared.security.addresses import AddressPolicy
from tests.hub import Hub
from tests.services.model.sources.conftest import MakeContext, bytes_of, spec
from tests.serving import Fault

MIB = 1024 * 1024
SOURCE = HuggingFace()
WEIGHTS = os.urandom(7 * MIB)
SMALL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "run.py": b"import os"}
LFS_PATH = "/lfs/" + hashlib.sha256(WEIGHTS).hexdigest()


async def _check(context: SourceContext, uri: str = "org/model", revision: str | None = None) -> SourcePlan:
    return await SOURCE.check(spec(Source.HUGGING_FACE, uri, revision), context)


async def _import(context: SourceContext, uri: str = "org/model") -> Manifest:
    return await SOURCE.fetch(await _check(context, uri), context, lambda done, total: None)


async def test_a_repository_is_pinned_verified_and_stored(
    hub: Hub, context: MakeContext, objects: DirectoryStore
) -> None:
    commit = hub.add("org/model", SMALL, cardData={"license": "apache-2.0"})
    here = context(hf_endpoint=hub.url)
    plan = await _check(here)
    assert (plan.commit, plan.license, plan.gated) == (commit, "apache-2.0", False)
    assert hub.sent == 0
    # what moves the branch afterwards changes nothing
    hub.add("org/model", {"config.json": b"{}", "model.safetensors": b"other"})
    seen: list[tuple[int, int | None]] = []
    manifest = await SOURCE.fetch(plan, here, lambda done, total: seen.append((done, total)))
    assert [file.path for file in manifest.files] == ["config.json", "model.safetensors"]
    assert await bytes_of(objects, manifest.files[1].sha256) == WEIGHTS
    assert seen[-1] == (plan.total_bytes, plan.total_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in manifest.files)
    assert manifest.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert Manifest.model_validate_json(await objects.get(f"manifests/{manifest.digest}.json")) == manifest


async def test_a_second_import_fetches_no_weights_again(hub: Hub, context: MakeContext) -> None:
    hub.add("org/model", SMALL)
    here = context(hf_endpoint=hub.url)
    first = await _import(here)
    hub.seen.clear()
    assert await _import(here) == first
    assert not hub.asked(LFS_PATH)


async def test_a_branch_and_a_tag_are_found_and_a_wrong_one_is_not(hub: Hub, context: MakeContext) -> None:
    hub.add("org/model", SMALL)
    commit = hub.add("org/model", {"model.safetensors": b"tagged"}, revision="refs/pr/1")
    here = context(hf_endpoint=hub.url)
    assert (await _check(here, revision="refs/pr/1")).commit == commit
    assert (await _check(here, revision=commit)).total_bytes == 6
    with pytest.raises(Permanent) as refused:
        await _check(here, revision="nope")
    assert refused.value.code == "revision_not_found"


@pytest.mark.parametrize(
    ("options", "token", "code"),
    [
        ({"gated": True}, None, "gated_model"),
        ({"gated": True, "granted": {"friend"}}, "stranger", "gated_model"),
        ({"private": True}, None, "credential_required"),
        ({"private": True, "granted": {"friend"}}, "stranger", "model_not_found"),
        ({}, "unknown-token", "credential_refused"),
        ({}, "bad\ntoken", "credential_refused"),
    ],
)
async def test_closed_doors_say_which_key_is_missing(
    hub: Hub, context: MakeContext, options: dict[str, object], token: str | None, code: str
) -> None:
    hub.tokens.add("stranger")
    hub.add("org/model", SMALL, **options)  # type: ignore[arg-type]  # options by name
    with pytest.raises(Permanent) as refused:
        await _check(context(hf_endpoint=hub.url, token=token))
    assert refused.value.code == code
    assert token is None or token not in str(refused.value)


async def test_a_gated_model_opens_with_its_key_and_the_key_stays_at_the_hub(context: MakeContext) -> None:
    with Hub() as store, Hub(lfs_url=store.url.replace("127.0.0.1", "localhost")) as hub:
        hub.add("org/model", SMALL, gated=True, granted={"friend"})
        store.add("org/model", SMALL)
        here = context(hf_endpoint=hub.url, token="friend")
        plan = await _check(here)
        assert plan.gated
        assert "friend" not in plan.model_dump_json()
        assert "friend" not in repr(here)
        await SOURCE.fetch(plan, here, lambda done, total: None)
        assert store.asked(LFS_PATH)
        assert not any("authorization" in request.headers for request in store.seen)
        assert all(request.headers["authorization"] == "Bearer friend" for request in hub.seen)


async def test_a_missing_model_is_a_permanent_fault(hub: Hub, context: MakeContext) -> None:
    hub.tokens.add("friend")
    with pytest.raises(Permanent) as refused:
        await _check(context(hf_endpoint=hub.url, token="friend"), "org/none")
    assert refused.value.code == "model_not_found"


async def test_a_cut_connection_goes_on_where_it_was(hub: Hub, context: MakeContext, objects: DirectoryStore) -> None:
    hub.add("org/model", SMALL)
    hub.fail(Fault(LFS_PATH, times=3, cut_after=MIB))
    manifest = await _import(context(hf_endpoint=hub.url))
    assert await bytes_of(objects, manifest.files[1].sha256) == WEIGHTS
    starts = [request.headers.get("range") for request in hub.asked(LFS_PATH)]
    assert starts == [None, *(f"bytes={MIB * part}-" for part in (1, 2, 3))]


async def test_a_connection_that_gives_nothing_is_for_the_retry_policy(hub: Hub, context: MakeContext) -> None:
    hub.add("org/model", SMALL)
    hub.fail(Fault(LFS_PATH, times=9, cut_after=0))
    with pytest.raises(Retry) as lost:
        await _import(context(hf_endpoint=hub.url))
    assert lost.value.code == "connection_lost"
    assert len(hub.asked(LFS_PATH)) == 1


async def test_bytes_with_another_checksum_are_refused_and_forgotten(
    hub: Hub, context: MakeContext, objects: DirectoryStore
) -> None:
    hub.add("org/model", SMALL)
    hub.fail(Fault(LFS_PATH, corrupt=True))
    here = context(hf_endpoint=hub.url)
    with pytest.raises(Permanent) as refused:
        await _import(here)
    assert refused.value.code == "checksum_mismatch"
    assert not await objects.exists(blob_key(hashlib.sha256(WEIGHTS).hexdigest()))
    assert (await _import(here)).size > len(WEIGHTS)


async def test_a_small_file_is_verified_by_its_git_hash(hub: Hub, context: MakeContext) -> None:
    hub.add("org/model", SMALL)
    hub.fail(Fault("/config.json", corrupt=True, method="GET"))
    with pytest.raises(Permanent) as refused:
        await _import(context(hf_endpoint=hub.url))
    assert refused.value.code == "checksum_mismatch"


async def test_wrong_bytes_from_an_earlier_attempt_are_fetched_again(hub: Hub, context: MakeContext) -> None:
    hub.add("org/model", SMALL)
    here = context(hf_endpoint=hub.url)
    hub.fail(Fault(LFS_PATH, cut_after=MIB, corrupt=True))
    hub.fail(Fault(LFS_PATH, cut_after=0))
    with pytest.raises(Retry):
        await _import(here)
    with pytest.raises(Retry) as mismatch:
        await _import(here)
    assert mismatch.value.code == "checksum_mismatch"
    assert (await _import(here)).size > len(WEIGHTS)


@pytest.mark.parametrize(
    ("status", "headers", "code", "after"),
    [
        (429, {"Retry-After": "17"}, "rate_limited", 17.0),
        (503, {"Retry-After": "5"}, "source_unavailable", 5.0),
        (500, {}, "source_unavailable", None),
        (429, {"Retry-After": "99999999"}, "rate_limited", 3600.0),
    ],
)
async def test_a_hub_that_asks_for_time_gets_it(
    hub: Hub, context: MakeContext, status: int, headers: dict[str, str], code: str, after: float | None
) -> None:
    hub.add("org/model", SMALL)
    here = context(hf_endpoint=hub.url)
    hub.fail(Fault("api/models/org/model", status=status, headers=headers))
    with pytest.raises(Retry) as told:
        await _check(here)
    assert (told.value.code, told.value.after) == (code, after)
    plan = await _check(here)
    hub.fail(Fault(LFS_PATH, status=status, headers=headers))
    with pytest.raises(Retry) as told:
        await SOURCE.fetch(plan, here, lambda done, total: None)
    assert (told.value.code, told.value.after) == (code, after)


async def test_what_is_too_large_is_refused_before_any_byte(hub: Hub, context: MakeContext) -> None:
    hub.add("org/model", SMALL)
    with pytest.raises(Permanent) as refused:
        await _check(context(hf_endpoint=hub.url, max_bytes=MIB))
    assert refused.value.code == "model_too_large"
    assert hub.sent == 0


async def test_a_full_disk_is_refused_before_any_byte(
    hub: Hub, context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SmallDisk(DirectoryStore):
        async def free_bytes(self) -> int:
            return 257 * MIB

    hub.add("org/model", SMALL)
    with pytest.raises(Permanent) as refused:
        await _check(context(hf_endpoint=hub.url, objects=SmallDisk(tmp_path / "small")))
    assert refused.value.code == "insufficient_disk"


async def test_a_hub_cannot_send_us_to_a_private_address(context: MakeContext) -> None:
    with Hub() as inside, Hub(lfs_url=inside.url) as hub:
        hub.add("org/model", SMALL)
        inside.add("org/model", SMALL)
        here = context(hf_endpoint=hub.url, policy=AddressPolicy())
        with pytest.raises(Permanent) as refused:
            await _import(here)
        assert refused.value.code == "address_refused"
        assert not inside.seen


@pytest.mark.parametrize(
    "path", ["../../evil.safetensors", "/evil.safetensors", "a\\b.safetensors", "x/" * 600 + "a.bin"]
)
async def test_paths_from_the_hub_cannot_leave_the_model(hub: Hub, context: MakeContext, path: str) -> None:
    hub.add("org/model", {path: b"x"})
    with pytest.raises(Permanent) as refused:
        await _check(context(hf_endpoint=hub.url))
    assert refused.value.code == "unsafe_path"


async def test_many_files_go_into_an_object_and_the_plan_stays_small(hub: Hub, context: MakeContext) -> None:
    names = [f"{'part' * 20}-{number:04d}.safetensors" for number in range(300)]
    hub.add("org/model", {name: name.encode() for name in names})
    here = context(hf_endpoint=hub.url)
    plan = await _check(here)
    assert len(plan.model_dump_json()) < 64 * 1024
    assert plan.file_count == 300
    manifest = await SOURCE.fetch(plan, here, lambda done, total: None)
    assert [file.path for file in manifest.files] == sorted(names)


async def test_a_cancelled_fetch_stops_at_once_and_goes_on_later(hub: Hub, context: MakeContext) -> None:
    hub.add("org/model", SMALL)
    hub.fail(Fault(LFS_PATH, pause_after=3 * MIB))
    here = context(hf_endpoint=hub.url)
    plan = await _check(here)
    reached = asyncio.Event()
    fetch = asyncio.create_task(
        SOURCE.fetch(plan, here, lambda done, total: reached.set() if done >= 3 * MIB else None)
    )
    await asyncio.wait_for(reached.wait(), 10)
    fetch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(fetch, 2)
    hub.resume.set()
    await SOURCE.fetch(plan, here, lambda done, total: None)
    assert hub.asked(LFS_PATH)[-1].headers["range"] == f"bytes={3 * MIB}-"


async def test_a_check_of_a_silent_hub_is_cancelled_at_once(context: MakeContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        here = context(hf_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        check = asyncio.create_task(_check(here))
        connection, _ = await asyncio.get_running_loop().sock_accept(silent)
        check.cancel()
        with connection, pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(check, 1)
        # an exiting process would wait for any other thread
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "hub")


async def test_bytes_that_are_stored_already_have_the_name_of_this_repository(hub: Hub, context: MakeContext) -> None:
    hub.add("org/first", {"old.safetensors": WEIGHTS, "config.json": b"{}"})
    hub.add("org/second", {"new.safetensors": WEIGHTS, "config.json": b"{}"})
    here = context(hf_endpoint=hub.url)
    plans = [await SOURCE.check(spec(Source.HUGGING_FACE, f"org/{name}"), here) for name in ("first", "second")]
    first, second = [await SOURCE.fetch(plan, here, lambda done, total: None) for plan in plans]
    assert [file.path for file in first.files] == ["config.json", "old.safetensors"]
    assert [file.path for file in second.files] == ["config.json", "new.safetensors"]
    assert not hub.asked("/new.safetensors", "GET")  # taken from the store


async def test_two_fetches_of_one_model_at_a_time_both_end_well(hub: Hub, context: MakeContext) -> None:
    hub.add("org/model", SMALL)
    here = context(hf_endpoint=hub.url)
    plan = await _check(here)
    results = await asyncio.gather(*(SOURCE.fetch(plan, here, lambda done, total: None) for _ in range(4)))
    assert len({manifest.digest for manifest in results}) == 1


_CHILD = """
import asyncio, sys
from pathlib import Path
from services.model.sources.base import SourceContext, SourcePlan
from services.model.sources.registry import source_for
from shared.objects import DirectoryStore
from shared.security.addresses import AddressPolicy
plan = SourcePlan.model_validate_json(sys.argv[3])
async def claim(files, manifest):
    pass
context = SourceContext(DirectoryStore(Path(sys.argv[1])), AddressPolicy(allow_private=True), sys.argv[2], (), 2**40, claim)
def tell(done, total):
    print(done, flush=True)
manifest = asyncio.run(source_for(plan.source).fetch(plan, context, tell))
"""


async def test_a_fetch_killed_by_kill_9_goes_on_where_it_was(
    hub: Hub, context: MakeContext, objects: DirectoryStore, tmp_path: Path
) -> None:
    hub.add("org/model", SMALL)
    hub.fail(Fault(LFS_PATH, pause_after=5 * MIB))
    here = context(hf_endpoint=hub.url)
    plan = await _check(here)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path / "objects"), hub.url, plan.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 5 * MIB:
            break
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    hub.resume.set()
    manifest = await SOURCE.fetch(plan, here, lambda done, total: None)
    assert await bytes_of(objects, manifest.files[1].sha256) == WEIGHTS
    start = hub.asked(LFS_PATH)[-1].headers["range"]
    # what was in the two buffers may be lost
    assert int(start.removeprefix("bytes=").removesuffix("-")) >= 5 * MIB - 2 * BUFFER
    assert len(hub.asked("/config.json", "GET")) == 1
    assert not list((tmp_path / "objects" / "scratch").iterdir())
