"""Files that are uploaded for flows: taken in, given to executions, downloaded, deleted, forgotten."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from services.app.flows import executions, files
from services.app.flows.definitions import Order
from services.app.models import holdings
from services.app.projects import repository as projects
from shared.objects.store import blob_key
from tests.services.app.conftest import caller_for
from tests.services.app.flows.conftest import Flows, Json, faults, template
from tests.services.flow.tasks.test_pdf import pdf

CONTENT = b"<script>alert(1)</script> 0123456789"
PDF = "application/pdf"


def _takes_file(**more: Any) -> Json:
    """A flow that takes a file and waits, without a look at it."""
    return template(
        "takes a file", input=[{"name": "doc", "type": "file"}], output=[],
        tasks=[{"ref": "ask", "type": "flow.wait_event", "input": {"name": "approval"}}], **more,
    )  # fmt: skip


async def _send(flows: Flows, content: bytes, kind: str = "text/plain", **query: str) -> httpx.Response:
    """Uploads it as it is."""
    params = {"project_id": str(flows.project), **query}
    return await flows.ask("POST", "/files", content=content, params=params, headers={"Content-Type": kind})


async def _upload(flows: Flows, content: bytes = CONTENT, name: str = "a.txt", kind: str = "text/plain") -> Json:
    answer = await _send(flows, content, kind, name=name)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def _scratch(flows: Flows) -> list[Path]:
    return list((flows.context.settings.data_dir / "objects" / "scratch").glob("upload-*"))


async def _is_empty(flows: Flows) -> bool:
    """Whether nothing of any upload is there."""
    blobs = [info async for info in flows.context.objects.list("blobs/")]
    return not blobs and not _scratch(flows) and await flows.value("SELECT count(*) FROM flow.artifact") == 0


async def _age(flows: Flows, file: Json, days: int) -> None:
    old = f"clock_timestamp() - interval '{days} days'"
    await flows.run(
        f"UPDATE flow.artifact SET created_at = {old}, used_at = least(used_at, {old}) WHERE id = :id",
        id=file["artifact_id"],
    )


# ---- taken in


@pytest.mark.usefixtures("engine")
async def test_an_uploaded_pdf_is_read(flows: Flows) -> None:
    content = pdf("Uploaded text")
    form = {"file": ("../../Bericht ü.pdf", content, PDF)}
    answer = await flows.ask("POST", "/files", files=form, params={"project_id": str(flows.project)})
    assert answer.status_code == 201, answer.text
    value = answer.json()
    file_id, sha256 = value["artifact_id"], hashlib.sha256(content).hexdigest()
    assert value == {
        "artifact_id": file_id, "name": "Bericht ü.pdf", "media_type": PDF, "size": len(content), "sha256": sha256,
        "href": f"/flow/files/{file_id}/content",
    }  # fmt: skip
    assert answer.headers["location"] == f"/flow/files/{file_id}"
    reads = template(
        input=[{"name": "doc", "type": "file"}],
        tasks=[{"ref": "read", "type": "pdf.extract_text", "input": {"file": "{{input.doc}}"}}],
        output=[{"name": "text", "type": "text", "value": "{{refs.read.output.text}}"}],
    )
    shown = await flows.until(await flows.start(await flows.create(reads), {"input": {"doc": value}}))
    assert (shown["status"], shown["output"], shown["input"]) == (
        "COMPLETED", {"text": "Uploaded text"}, {"doc": value},
    )  # fmt: skip
    again = await flows.get(f"/files/{file_id}")
    assert {name: again[name] for name in value} == value
    assert again["project_id"] == str(flows.project)
    assert again["created_at"] <= again["used_at"]


async def test_bytes_come_back_as_they_were_sent(flows: Flows) -> None:
    file = await _upload(flows, kind="Text/HTML; charset=latin-1", name="/etc/päge.html")
    assert (file["name"], file["media_type"], file["size"]) == ("päge.html", "text/html", len(CONTENT))
    headers = flows.person.headers
    whole = await flows.client.get(file["href"], headers=headers)
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert whole.headers["content-disposition"].startswith("attachment;")
    assert whole.headers["x-content-type-options"] == "nosniff"
    part = await flows.client.get(file["href"], headers={**headers, "Range": "bytes=-10"})
    assert (part.status_code, part.content) == (206, b"0123456789")


async def test_large_files_are_written_as_they_come(flows: Flows) -> None:
    """In more pieces than are gathered at a time, in both forms."""
    content = bytes(range(256)) * (5 * 4096 + 3)
    sha256 = hashlib.sha256(content).hexdigest()
    assert (await _upload(flows, content))["sha256"] == sha256
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    whole = head + content + b"\r\n--b--\r\n"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 65_537):
            yield whole[start : start + 65_537]

    answer = await flows.ask(
        "POST", "/files", content=pieces(), params={"project_id": str(flows.project)},
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text
    assert (answer.json()["sha256"], answer.json()["media_type"]) == (sha256, "application/octet-stream")
    assert not _scratch(flows)


async def test_a_repeated_upload_is_one(flows: Flows) -> None:
    async def send(content: bytes, key: str = "once") -> httpx.Response:
        params = {"project_id": str(flows.project)}
        headers = {"Idempotency-Key": key, "Content-Type": "text/plain"}
        return await flows.ask("POST", "/files", content=content, params=params, headers=headers)

    first, second = await send(CONTENT), await send(CONTENT)
    assert (first.status_code, second.status_code, first.json()) == (201, 201, second.json())
    assert second.headers["idempotency-replayed"] == "true"
    assert (await send(b"other")).json()["code"] == "idempotency_mismatch"
    other = await send(CONTENT, "another")
    assert other.json()["artifact_id"] != first.json()["artifact_id"]
    listed = await flows.get("/files", project_id=str(flows.project))
    assert [one["artifact_id"] for one in listed["data"]] == [
        other.json()["artifact_id"], first.json()["artifact_id"],
    ]  # fmt: skip
    assert not _scratch(flows)


@pytest.mark.parametrize("is_form", [False, True], ids=["bytes", "form"])
@pytest.mark.parametrize("is_declared", [False, True], ids=["chunked", "declared"])
async def test_what_is_too_large_leaves_nothing(flows: Flows, is_form: bool, is_declared: bool) -> None:
    flows.context.settings = flows.context.settings.model_copy(update={"flow_max_file_bytes": 2_000_000})
    head, tail = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n', b"\r\n--b--\r\n"
    kind = "multipart/form-data; boundary=b" if is_form else "text/plain"

    async def send(size: int) -> httpx.Response:
        body = head + bytes(size) + tail if is_form else bytes(size)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 100_000):
                yield body[start : start + 100_000]

        content = body if is_declared else pieces()
        params = {"project_id": str(flows.project)}
        return await flows.ask("POST", "/files", content=content, params=params, headers={"Content-Type": kind})

    refused = await send(2_000_001)
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
    assert await _is_empty(flows)
    assert (await send(2_000_000)).status_code == 201


FORM = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n'
BAD: dict[str, tuple[bytes, str, int]] = {
    "nothing": (b"", "text/plain", 400),
    "no type": (CONTENT, "text", 415),
    "a hostile type": (CONTENT, "text/html<script>", 415),
    "a form that stops short": (PART + b"\r\n" + CONTENT, FORM, 400),
    "a form without boundary": (PART + b"\r\nx\r\n--b--\r\n", "multipart/form-data", 400),
    "an empty form": (b"--b--\r\n", FORM, 400),
    "another part": (PART.replace(b'"file"', b'"other"') + b"\r\nx\r\n--b--\r\n", FORM, 400),
    "two parts": (PART + b"\r\nx\r\n" + PART.replace(b'"file"', b'"b"') + b"\r\nx\r\n--b--\r\n", FORM, 400),
    "a field left empty": (PART.replace(b'"x"', b'""') + b"\r\n\r\n--b--\r\n", FORM, 400),
    "a part of no type": (PART + b"Content-Type: a b\r\n\r\nx\r\n--b--\r\n", FORM, 415),
    "a long header": (PART + b"X: " + bytes(200_000) + b"\r\n\r\nx\r\n--b--\r\n", FORM, 400),
}


@pytest.mark.parametrize("how", BAD)
async def test_bodies_that_are_no_file(flows: Flows, how: str) -> None:
    content, kind, status = BAD[how]
    answer = await _send(flows, content, kind)
    assert answer.status_code == status, answer.text
    assert await _is_empty(flows)


async def test_an_upload_that_is_cut_off_leaves_nothing(app: FastAPI, flows: Flows) -> None:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=2))
    listening = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    socket = listening.sockets[0].dup()
    listening.close()
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        host, port = socket.getsockname()[:2]
        reader, writer = await asyncio.open_connection(host, port)
        head = (
            f"POST /flow/files?project_id={flows.project} HTTP/1.1\r\nHost: test\r\nContent-Length: 9000000\r\n"
            f"Authorization: Bearer {flows.person.key}\r\nContent-Type: text/plain\r\n\r\n"
        )
        writer.write(head.encode() + bytes(3_000_000))
        async with asyncio.timeout(30):
            await writer.drain()
            while not any(file.stat().st_size for folder in _scratch(flows) for file in folder.glob("content")):
                await asyncio.sleep(0.02)
            writer.close()
            while _scratch(flows):
                await asyncio.sleep(0.02)
        assert reader.at_eof() or not await reader.read()
        assert await _is_empty(flows)
    finally:
        server.should_exit = True
        await serving


async def test_sweeps_leave_an_upload_that_is_under_way(flows: Flows) -> None:
    objects, swept = flows.context.objects, []

    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(2_000_000)
        swept.append(await objects.sweep_scratch(-3600))  # as if an hour had passed
        yield b"the rest"

    answer = await flows.ask(
        "POST", "/files", content=pieces(), params={"project_id": str(flows.project)},
        headers={"Content-Type": "text/plain"},
    )  # fmt: skip
    assert (answer.status_code, answer.json()["size"], swept) == (201, 2_000_008, [0])


# ---- given to executions


async def test_what_the_sender_says_of_a_file_counts_for_nothing(flows: Flows) -> None:
    file = await _upload(flows)
    lie = {
        "artifact_id": file["artifact_id"].upper(), "name": "x", "size": 1, "sha256": "0" * 64, "spilled": True,
        "href": "https://evil.example",
    }  # fmt: skip
    path = await flows.start(await flows.create(_takes_file()), {"input": {"doc": lie}})
    assert (await flows.get(path))["input"] == {"doc": file}
    stored = await flows.value("SELECT inputs -> 'doc' FROM flow.execution")
    assert stored == {name: value for name, value in file.items() if name != "href"}
    assert await flows.value("SELECT input -> 'inputs' -> 'doc' FROM jobs.job") == stored


async def test_files_that_are_not_the_projects(flows: Flows) -> None:
    person = await flows.people.add("member", projects={(other := await flows.people.project("other")): "member"})
    stranger = Flows(flows.client, flows.context, flows.people, person, other)
    foreign = await _upload(stranger)
    flow = await flows.create(_takes_file())
    for value in (foreign, {"artifact_id": str(uuid4())}, {"artifact_id": "no id"}, {"artifact_id": "x" * 36}):
        for place, body in (("input.doc", {"input": {"doc": value}}), ("inputs.doc", {"inputs": {"doc": value}})):
            answer = await flows.ask("POST", f"/workflows/{flow}/execute", body=body)
            assert (answer.status_code, answer.json()["code"]) == (400, "flow_input_invalid"), answer.text
            assert faults(answer) == [(place, "reference_not_found")]
    assert await flows.value("SELECT count(*) FROM flow.execution") == 0
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert (await flows.ask(method, f"/files/{foreign['artifact_id']}{path}")).status_code == 404
    assert (await flows.get("/files"))["data"] == []
    assert (await flows.ask("GET", "/files", params={"project_id": str(other)})).status_code == 422
    assert (await stranger.get("/files"))["total"] == 1


def _takes_object() -> Json:
    return {
        **_takes_file(),
        "input": [{"name": "order", "type": "object"}, {"name": "all", "type": "list", "default": []}],
    }


async def test_files_within_other_values_are_looked_at_and_stay(flows: Flows) -> None:
    file = await _upload(flows)
    lie = {"artifact_id": file["artifact_id"], "sha256": "0" * 64, "href": "https://evil.example"}
    order = {"documents": [lie], "noted": {**lie, "note": "mine"}, "other": {"artifact_id": str(uuid4()), "of": "them"}}
    path = await flows.start(await flows.create(_takes_object()), {"input": {"order": order}})
    stored = await flows.value("SELECT inputs -> 'order' FROM flow.execution")
    assert stored["documents"] == [{name: value for name, value in file.items() if name != "href"}]
    assert (stored["noted"]["sha256"], stored["noted"]["note"]) == (file["sha256"], "mine")
    assert stored["other"] == order["other"]  # it may be anything of theirs
    assert (await flows.get(path))["input"]["order"]["documents"] == [file]
    refused = await flows.ask("DELETE", f"/files/{file['artifact_id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    assert (await flows.ask("POST", f"{path}/cancel")).status_code == 200
    await _age(flows, file, 31)
    await files.forget(flows.context)
    assert (await flows.get("/files"))["total"] == 1  # as long as the execution is known
    assert (await flows.ask("DELETE", f"/files/{file['artifact_id']}")).status_code == 204


async def test_files_within_other_values_are_the_projects(flows: Flows) -> None:
    person = await flows.people.add("member", projects={(other := await flows.people.project("other")): "member"})
    foreign = await _upload(Flows(flows.client, flows.context, flows.people, person, other))
    flow = await flows.create(_takes_object())
    given = {"order": {"a": [{"b": foreign}]}, "all": [{"artifact_id": str(uuid4())}, foreign]}
    answer = await flows.ask("POST", f"/workflows/{flow}/executions", body={"inputs": given})
    assert (answer.status_code, answer.json()["code"]) == (400, "flow_input_invalid"), answer.text
    assert faults(answer) == [
        (path, "reference_not_found") for path in ("inputs.order.a[0].b", "inputs.all[0]", "inputs.all[1]")
    ]
    assert await flows.value("SELECT count(*) FROM flow.execution") == 0


# ---- how many


def _limit(flows: Flows, **limits: int) -> None:
    flows.context.settings = flows.context.settings.model_copy(update=limits)


async def test_a_project_keeps_so_many_files(flows: Flows) -> None:
    _limit(flows, flow_files_per_project=2)
    first = await _upload(flows)
    await _upload(flows)
    refused = await _send(flows, b"a third one")
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_files")
    assert "2 uploaded files" in refused.json()["detail"]
    blobs = [info async for info in flows.context.objects.list("blobs/")]
    assert (len(blobs), _scratch(flows)) == (1, [])  # those of the first two are equal, of the third nothing is left
    assert (await flows.ask("DELETE", f"/files/{first['artifact_id']}")).status_code == 204
    assert (await _send(flows, b"a third one")).status_code == 201


async def test_a_project_keeps_so_many_bytes(flows: Flows) -> None:
    _limit(flows, flow_file_bytes_per_project=100)
    await _upload(flows, bytes(60))
    refused = await _send(flows, bytes(41))
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_files")
    assert "40 are left; this one has 41" in refused.json()["detail"]
    assert await flows.value("SELECT count(*) FROM flow.artifact") == 1
    assert (await _send(flows, bytes(40))).status_code == 201
    assert (await _send(flows, b"x")).status_code == 409
    person = await flows.people.add("member", projects={(other := await flows.people.project("other")): "member"})
    assert (await _upload(Flows(flows.client, flows.context, flows.people, person, other)))["size"] == len(CONTENT)


async def test_two_cannot_both_take_the_last_place(flows: Flows) -> None:
    _limit(flows, flow_files_per_project=1)
    async with flows.context.database.transaction() as session:
        await projects.get(session, flows.project, lock=True)
        sent = [asyncio.create_task(_send(flows, one)) for one in (b"one", b"two")]
        await flows.until_locked(2)
    assert sorted([(await one).status_code for one in sent]) == [201, 409]


# ---- deleted and forgotten


async def test_a_file_in_use_stays(flows: Flows) -> None:
    file = await _upload(flows)
    where, key = f"/files/{file['artifact_id']}", blob_key(file["sha256"])
    path = await flows.start(await flows.create(_takes_file()), {"input": {"doc": file}})
    refused = await flows.ask("DELETE", where)
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    assert path.rsplit("/", 1)[1] in refused.json()["detail"]
    assert (await flows.ask("POST", f"{path}/cancel")).status_code == 200
    assert (await flows.get(path))["status"] == "CANCELLED"
    assert (await flows.ask("DELETE", where)).status_code == 204
    assert (await flows.ask("GET", where)).status_code == 404
    assert not await flows.context.objects.exists(key)
    assert "href" not in (await flows.get(path))["input"]["doc"]


async def test_a_deletion_waits_for_a_start(flows: Flows) -> None:
    """Whichever comes first, no execution has begun with a file that is gone."""
    file = await _upload(flows)
    flow = await flows.create(_takes_file())
    caller = caller_for(flows.person, "member", {flows.project: "member"})
    order = Order("refs", {"doc": file}, None)
    async with flows.context.database.transaction() as session:
        await executions.start(flows.context, session, caller, flow, order, None)
        deletion = asyncio.create_task(flows.ask("DELETE", f"/files/{file['artifact_id']}"))
        await flows.until_locked(1)
    assert (await deletion).json()["code"] == "in_use"


async def test_equal_bytes_stay_while_one_file_has_them(flows: Flows) -> None:
    one, two = await _upload(flows), await _upload(flows)
    assert (await flows.ask("DELETE", f"/files/{one['artifact_id']}")).status_code == 204
    await holdings.sweep(flows.context)
    assert (await flows.client.get(two["href"], headers=flows.person.headers)).content == CONTENT


async def test_files_that_nobody_uses_are_forgotten(flows: Flows) -> None:
    young, old, used, again = [await _upload(flows, name.encode(), name) for name in ("young", "old", "used", "again")]
    flow = await flows.create(_takes_file())
    paths = [await flows.start(flow, {"input": {"doc": file}}) for file in (used, again)]
    for path in paths:
        assert (await flows.ask("POST", f"{path}/cancel")).status_code == 200
    for file, days in ((young, 29), (old, 31), (used, 31), (again, 31)):
        await _age(flows, file, days)

    async def left() -> list[str]:
        await files.forget(flows.context)
        await holdings.sweep(flows.context)
        names = sorted(one["name"] for one in (await flows.get("/files"))["data"])
        blobs = [info.key async for info in flows.context.objects.list("blobs/")]
        assert len(blobs) == len(names)
        return names

    assert await left() == ["again", "used", "young"]
    second = await flows.start(flow, {"input": {"doc": again}})  # counts as a use, now
    assert (await flows.ask("POST", f"{second}/cancel")).status_code == 200
    for path in (*paths, second):
        assert (await flows.ask("DELETE", path)).status_code == 204
    assert await left() == ["again", "young"]


async def test_a_file_stays_for_a_schedule(flows: Flows) -> None:
    file = await _upload(flows)
    place = f"/workflows/{await flows.create(_takes_file())}/schedules"
    body = {"cron": "0 9 1 1 *", "input": {"doc": {"artifact_id": file["artifact_id"].upper()}}}
    made = await flows.ask("POST", place, body=body)
    assert made.status_code == 201, made.text
    await _age(flows, file, 31)
    assert await files.forget(flows.context) == 0
    assert (await flows.ask("DELETE", f"{place}/{made.json()['id']}")).status_code == 204
    assert await files.forget(flows.context) == 1


async def test_files_go_with_their_project(flows: Flows) -> None:
    await _upload(flows)
    admin = await flows.people.add("admin")
    gone = await flows.client.delete(f"/projects/{flows.project}", headers=admin.headers)
    assert gone.status_code == 204, gone.text
    await holdings.sweep(flows.context)
    assert await _is_empty(flows)
