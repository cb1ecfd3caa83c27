"""The real loader, as a process and in a real pod, fetches from the real app."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from services.app.context import AppContext
from services.app.endpoints.model_files import Limits
from services.cluster.runtimes.base import Workload
from services.cluster.runtimes.containers import Delivery
from services.cluster.runtimes.kubernetes import loader
from shared.jobs.outcomes import Permanent
from tests.services.app.conftest import People
from tests.services.app.endpoints.conftest import CONTENTS, MIB, Running, Served, SlowStore, make_served, running
from tests.services.cluster.runtimes.kubernetes.support import connected, workload
from tests.services.cluster.runtimes.kubernetes.test_model_bytes import read
from tests.testbed.cluster import Cluster, cluster

__all__ = ["cluster"]


class Ended(NamedTuple):
    code: int
    said: str


class Loader:
    """`loader.py fetch` as a pod runs it, into a folder that stays between runs."""

    def __init__(self, folder: Path, app: Running, served: Served) -> None:
        self.target = folder / "models"
        self.target.mkdir(exist_ok=True)
        self.token_file = folder / "token"
        self.token_file.write_text(served.token)
        self.url = f"{app.url}{served.path}"
        self.digest = served.digest

    async def start(self, patience: float = 20.0) -> asyncio.subprocess.Process:
        given = {
            "url": self.url, "target": self.target, "digest": self.digest, "token-file": self.token_file,
            "patience": patience,
        }  # fmt: skip
        return await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-B", loader.__file__, "fetch", *(f"--{name}={value}" for name, value in given.items()),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def run(self, patience: float = 20.0) -> Ended:
        process = await self.start(patience)
        out, error = await process.communicate()
        assert process.returncode is not None
        said = (out + error).decode()
        assert self.token_file.read_text() not in said
        return Ended(process.returncode, said)

    def has(self, contents: dict[str, bytes]) -> bool:
        return all((self.target / path).read_bytes() == content for path, content in contents.items())


async def test_it_brings_every_file(app_context: AppContext, served: Served, tmp_path: Path) -> None:
    async with running(app_context) as app:
        fetching = Loader(tmp_path, app, served)
        assert (await fetching.run()).code == 0
        assert fetching.has(CONTENTS)


async def test_it_goes_on_where_a_killed_one_was(
    app_context: AppContext, people: People, store: SlowStore, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 4 * 1024 * 16
    served = await make_served(app_context, people, store, {"weights.gguf": content})
    store.until = 8 * MIB
    async with running(app_context) as app:
        fetching = Loader(tmp_path, app, served)
        process = await fetching.start()
        partial = fetching.target / ".stepway" / f"0-{served.files[0].sha256[:16]}"
        async with asyncio.timeout(30):
            while not (partial.exists() and partial.stat().st_size >= 4 * MIB):
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await app.idle()
        have = partial.stat().st_size
        store.until = None
        with capture_logs() as logs:
            assert (await fetching.run()).code == 0
        assert fetching.has({"weights.gguf": content})
        starts = [line["start"] for line in logs if line["event"] == "model_file_sent"]
        assert starts == [have]


async def test_wrong_bytes_are_not_accepted(app_context: AppContext, served: Served, tmp_path: Path) -> None:
    file = served.files[1]
    served.store.overwrite(file.sha256, bytes(file.size))
    async with running(app_context) as app:
        fetching = Loader(tmp_path, app, served)
        ended = await fetching.run()
    assert ended.code == loader.WRONG_BYTES
    assert "deep/weights.gguf has another checksum" in ended.said
    assert not (fetching.target / file.path).exists()


async def test_files_of_another_digest_are_not_accepted(
    app_context: AppContext, served: Served, people: People, tmp_path: Path
) -> None:
    async with running(app_context) as app:
        fetching = Loader(tmp_path, app, served)
        fetching.digest = "d" * 64
        ended = await fetching.run()
    assert ended.code == loader.WRONG_BYTES
    assert "not that of the model that was deployed" in ended.said


@pytest.mark.parametrize("how", ["deleted", "revoked", "model", "blob"])
async def test_it_gives_up_when_it_may_no_longer(
    app_context: AppContext, served: Served, tmp_path: Path, how: str
) -> None:
    match how:
        case "deleted":
            await served.change(phase="deleted")
        case "revoked":
            await served.change(sealed=app_context.keyring.seal(b"another key", f"endpoint:{served.id}"))
        case "model":
            await served.delete_model()
        case _:
            (served.store.root / "blobs" / served.files[1].sha256[:2] / served.files[1].sha256).unlink()
    async with running(app_context) as app:
        ended = await Loader(tmp_path, app, served).run()
    assert ended.code == loader.REFUSED
    assert f"status {401 if how == 'revoked' else 410}" in ended.said


async def test_it_waits_for_its_turn(app_context: AppContext, served: Served, tmp_path: Path) -> None:
    """One transfer at a time, though the loader fetches several files at once."""
    served.store.until = 0
    async with running(app_context, limits=Limits(per_endpoint=1)) as app:
        fetching = Loader(tmp_path, app, served)
        process = await fetching.start()
        async with asyncio.timeout(30):
            while not app.transfers.running:
                await asyncio.sleep(0.01)
        served.store.go.set()
        await process.communicate()
        assert process.returncode == 0
    assert fetching.has(CONTENTS)


async def test_a_real_pod_fetches_its_model(
    app_context: AppContext, served: Served, cluster: Cluster, people: People
) -> None:
    """At the address that we advertise, with the token from its Secret; a revoked token is the worker's own reason."""
    refused = await make_served(app_context, people, served.store)
    async with running(app_context, cluster.host) as app, connected(cluster.api) as runtime:

        def wanted(one: Served, token: str) -> Workload:
            return workload(
                str(one.id), secrets={"loader-token": SecretStr(token)},
                delivery=Delivery(mode="fetch", digest=one.digest, files=one.files, url=f"{app.url}{one.path}"),
            )  # fmt: skip

        try:
            with capture_logs() as logs:
                await runtime.apply(wanted(served, served.token))
                seen = await runtime.wait_ready(str(served.id), 1, 60)
            assert (await read(runtime, seen, "config.json")).text == CONTENTS["config.json"].decode()
            sent = {line["number"]: line["end"] for line in logs if line["event"] == "model_file_sent"}
            assert sent == {0: "done", 1: "done"}  # the empty file needs no bytes
            await runtime.apply(wanted(refused, served.token))
            with pytest.raises(Permanent) as caught:
                await runtime.wait_ready(str(refused.id), 1, 60)
            assert "The platform refuses the model's files (status 401)." in caught.value.message
        finally:
            await runtime.remove_all()
