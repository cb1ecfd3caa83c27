"""Models from a URL: servers that lie, redirect, stall and change, and archives that bite."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest

from services.model.sources.base import SourceContext
from services.model.sources.url import Url
from shared.contracts.models import Manifest, Source
from shared.jobs.outcomes import Permanent, Retry, StepError
from shared.objects import DirectoryStore
from shared.security.addresses import AddressPolicy
from tests.services.model.sources.conftest import MakeContext, bytes_of, spec
from tests.serving import Fault, FileServer, send

MIB = 1024 * 1024
SOURCE = Url()
DATA = os.urandom(3 * MIB)


async def _import(context: SourceContext, url: str) -> Manifest:
    plan = await SOURCE.check(spec(Source.URL, url), context)
    return await SOURCE.fetch(plan, context, lambda done, total: None)


async def _refusal(context: SourceContext, url: str) -> str:
    with pytest.raises(StepError) as refused:
        await _import(context, url)
    return refused.value.code


async def test_one_file_is_stored_under_the_name_in_its_path(
    files: FileServer, context: MakeContext, objects: DirectoryStore
) -> None:
    url = files.add("/models/..%2f..%2fetc%2Fmy%20model.gguf", DATA)
    manifest = await _import(context(), url + "?download=true")
    assert [file.path for file in manifest.files] == ["etc_my_model.gguf"]
    assert await bytes_of(objects, manifest.files[0].sha256) == DATA


async def test_the_same_bytes_from_another_address_have_the_name_there(files: FileServer, context: MakeContext) -> None:
    first = await _import(context(), files.add("/old.gguf", DATA))
    second = await _import(context(), files.add("/new.gguf", DATA))
    assert [file.path for file in (*first.files, *second.files)] == ["old.gguf", "new.gguf"]
    assert first.files[0].sha256 == second.files[0].sha256


async def test_a_check_takes_no_bytes_and_tells_the_size(files: FileServer, context: MakeContext) -> None:
    url = files.add("/m.gguf", DATA)
    plan = await SOURCE.check(spec(Source.URL, url), context())
    assert (plan.total_bytes, plan.etag, plan.archive) == (len(DATA), '"1"', None)


async def test_a_cut_connection_goes_on_if_the_file_is_the_same(
    files: FileServer, context: MakeContext, objects: DirectoryStore
) -> None:
    url = files.add("/m.gguf", DATA)
    files.fail(Fault("/m.gguf", skip=1, cut_after=2 * MIB))
    manifest = await _import(context(), url)
    assert await bytes_of(objects, manifest.files[0].sha256) == DATA
    last = files.asked("/m.gguf")[-1].headers
    assert (last["range"], last["if-range"]) == (f"bytes={2 * MIB}-", '"1"')


async def test_a_new_attempt_goes_on_where_the_last_one_was_lost(
    files: FileServer, context: MakeContext, objects: DirectoryStore
) -> None:
    url = files.add("/m.gguf", DATA)
    here = context()
    plan = await SOURCE.check(spec(Source.URL, url), here)
    files.fail(Fault("/m.gguf", cut_after=2 * MIB))
    files.fail(Fault("/m.gguf", cut_after=0))
    with pytest.raises(Retry):
        await SOURCE.fetch(plan, here, lambda done, total: None)
    manifest = await SOURCE.fetch(plan, here, lambda done, total: None)
    assert files.asked("/m.gguf")[-1].headers["range"] == f"bytes={2 * MIB}-"
    assert await bytes_of(objects, manifest.files[0].sha256) == DATA


async def test_a_server_without_ranges_begins_again(
    files: FileServer, context: MakeContext, objects: DirectoryStore
) -> None:
    url = files.add("/m.gguf", DATA, ranges=False)
    files.fail(Fault("/m.gguf", skip=1, cut_after=2 * MIB))
    manifest = await _import(context(), url)
    assert await bytes_of(objects, manifest.files[0].sha256) == DATA


async def test_two_versions_are_never_mixed(files: FileServer, context: MakeContext, objects: DirectoryStore) -> None:
    other = os.urandom(3 * MIB)
    url = files.add("/m.gguf", DATA, etag=None)
    files.fail(Fault("/m.gguf", skip=1, cut_after=2 * MIB))
    here = context()
    plan = await SOURCE.check(spec(Source.URL, url), here)
    changed = False

    def change(done: int, total: int | None) -> None:
        nonlocal changed
        if done >= MIB and not changed:
            changed = True
            files.add("/m.gguf", other, etag=None)

    # without a validator a second part cannot be trusted: the whole file comes again
    manifest = await SOURCE.fetch(plan, here, change)
    assert await bytes_of(objects, manifest.files[0].sha256) == other


async def test_a_file_that_changed_since_the_check_is_refused(files: FileServer, context: MakeContext) -> None:
    url = files.add("/m.gguf", DATA)
    here = context()
    plan = await SOURCE.check(spec(Source.URL, url), here)
    files.add("/m.gguf", b"other", etag='"2"')
    with pytest.raises(Permanent) as refused:
        await SOURCE.fetch(plan, here, lambda done, total: None)
    assert refused.value.code == "source_changed"


async def test_the_limit_holds_whatever_the_length_says(files: FileServer, context: MakeContext) -> None:
    def endless(request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        for _ in range(64):
            request.wfile.write(b"x" * MIB)

    here = context(max_bytes=2 * MIB)
    assert await _refusal(here, files.add("/announced.gguf", DATA)) == "model_too_large"
    assert await _refusal(here, files.route("/endless.gguf", endless)) == "model_too_large"


async def test_a_length_that_promises_more_than_comes_is_a_cut(files: FileServer, context: MakeContext) -> None:
    url = files.add("/m.gguf", DATA, ranges=False)
    files.fail(Fault("/m.gguf", times=50, announce=4 * MIB))
    assert await _refusal(context(), url) == "connection_lost"


async def test_compressed_answers_are_refused(files: FileServer, context: MakeContext) -> None:
    url = files.add("/m.gguf", gzip.compress(b"x" * MIB), content_encoding="gzip")
    assert await _refusal(context(), url) == "source_refused"


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (404, {}, "source_not_found"),
        (403, {}, "access_denied"),
        (429, {"Retry-After": "3"}, "rate_limited"),
        (502, {}, "source_unavailable"),
        (204, {}, "source_refused"),
    ],
)
async def test_statuses_say_what_to_do(
    files: FileServer, context: MakeContext, status: int, headers: dict[str, str], code: str
) -> None:
    url = files.add("/m.gguf", DATA)
    files.fail(Fault("/m.gguf", status=status, headers=headers))
    assert await _refusal(context(), url) == code


async def test_redirects_are_followed_and_the_credential_stays(
    files: FileServer, context: MakeContext, objects: DirectoryStore
) -> None:
    target = files.add("/real.gguf", DATA)
    url = files.redirect("/m.gguf", target.replace("127.0.0.1", "localhost"))
    manifest = await _import(context(token="s3cret"), url)
    assert [file.path for file in manifest.files] == ["m.gguf"]
    assert all(item.headers["authorization"] == "Bearer s3cret" for item in files.asked("/m.gguf"))
    assert not any("authorization" in item.headers for item in files.asked("/real.gguf"))


async def test_a_redirect_cannot_reach_what_the_policy_forbids(files: FileServer, context: MakeContext) -> None:
    with FileServer() as inside:
        secret = inside.add("/secret.gguf", b"secret")
        policy = AddressPolicy(allowed_hosts=frozenset({f"127.0.0.1:{files.port}"}))
        here = context(policy=policy)
        assert await _refusal(here, files.redirect("/a.gguf", secret)) == "address_refused"
        assert await _refusal(here, files.redirect("/b.gguf", "file:///etc/passwd")) in (
            "source_refused",
            "address_refused",
        )
        assert await _refusal(here, files.redirect("/c.gguf", "http://u:p@127.0.0.1:1/x")) == "address_refused"
        assert await _refusal(here, files.redirect("/d.gguf", "/d.gguf")) == "too_many_redirects"
        assert await _refusal(replace(here, policy=AddressPolicy()), secret) == "address_refused"
        assert not inside.seen


async def test_a_credential_is_not_sent_in_the_clear(files: FileServer, context: MakeContext) -> None:
    policy = AddressPolicy(allowed_hosts=frozenset({f"127.0.0.1:{files.port}"}))
    assert await _refusal(context(policy=policy, token="s3cret"), files.add("/m.gguf", DATA)) == "credential_refused"
    assert not files.seen


# archives


def _zip(members: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, data)
    return out.getvalue()


def _tar(
    members: dict[str, bytes], mode: str = "w:gz", change: Callable[[tarfile.TarInfo], None] = lambda info: None
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]  # a mode from a parameter
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            change(info)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


MODEL = {"model/config.json": b"{}", "model/weights/a.safetensors": DATA, "model/empty": b""}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("m.zip", _zip(MODEL)),
        ("m.tar", _tar(MODEL, "w")),
        ("m.tar.gz", _tar(MODEL)),
        ("m.TGZ", _tar({f"./{path}": data for path, data in MODEL.items()})),
    ],
)
async def test_an_archive_is_unpacked_without_its_outer_folder(
    files: FileServer, context: MakeContext, objects: DirectoryStore, name: str, body: bytes
) -> None:
    manifest = await _import(context(), files.add(f"/{name}", body))
    assert [file.path for file in manifest.files] == ["config.json", "empty", "weights/a.safetensors"]
    assert await bytes_of(objects, manifest.files[2].sha256) == DATA


def _kind(kind: bytes) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.size, info.linkname = kind, 0, "/etc/passwd"

    return change


def _link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def _giant_header() -> bytes:
    """A tar whose extended header claims, and compresses to nothing, hundreds of megabytes."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 300 * MIB
    return gzip.compress(info.tobuf() + b"\0" * (300 * MIB), 1)


def _overlapping(count: int) -> bytes:
    """Many entries of a zip that share one body."""
    whole = _zip({"a": b"\0" * (20 * MIB)})
    at = whole.index(b"PK\x01\x02")
    body, entry = whole[:at], whole[at : whole.index(b"PK\x05\x06")]
    entries = b"".join(entry[:46] + b"%c" % (65 + number) + entry[47:] for number in range(count))
    return body + entries + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entries), len(body), 0)


HOSTILE = {
    "up.zip": _zip({"../evil": b"x"}),
    "absolute.zip": _zip({"/etc/evil": b"x"}),
    "backslash.zip": _zip({"..\\evil": b"x"}),
    "drive.zip": _zip({"C:evil": b"x"}),
    "twice.zip": _zip({"a/model": b"x", "A/MODEL": b"y"}),
    "file-and-folder.zip": _zip({"a": b"x", "a/b": b"y"}),
    "link.zip": _zip({"a": b"/etc/passwd"}, _link),
    "bomb.zip": _zip({"a": b"\0" * (100 * MIB)}),
    "overlap.zip": _overlapping(8),
    "not.zip": b"PK\x03\x04 no table of contents",
    "cut.zip": _zip(MODEL)[: 2 * MIB],
    "damaged.zip": _zip({"a": DATA}).replace(DATA[MIB : MIB + 16], bytes(16)),
    "up.tar": _tar({"../evil": b"x"}, "w"),
    "absolute.tar": _tar({"/evil": b"x"}, "w"),
    "inside-up.tar": _tar({"a/../../evil": b"x"}, "w"),
    "symbolic.tar": _tar({"a": b""}, "w", _kind(tarfile.SYMTYPE)),
    "hard.tar": _tar({"a": b""}, "w", _kind(tarfile.LNKTYPE)),
    "device.tar": _tar({"a": b""}, "w", _kind(tarfile.CHRTYPE)),
    "pipe.tar": _tar({"a": b""}, "w", _kind(tarfile.FIFOTYPE)),
    "sparse.tar": _tar({"a": b""}, "w", _kind(tarfile.GNUTYPE_SPARSE)),
    "bomb.tar.gz": _tar({"a": b"\0" * (100 * MIB)}),
    "giant-header.tar.gz": _giant_header(),
    "not.tar.gz": b"\x1f\x8b nothing",
    "cut.tar.gz": _tar(MODEL)[: 2 * MIB],
    "cut.tar": _tar(MODEL, "w")[: 2 * MIB],
    "cut-at-a-header.tar": _tar({"a": b"x" * 512, "b": b"y"}, "w")[:1024],
    "broken-header.tar": _tar({"a": b"x" * 512, "b": b"y"}, "w")[:1024] + b"rubbish!" * 128,
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_archive_is_refused_whole(
    files: FileServer, context: MakeContext, objects: DirectoryStore, name: str
) -> None:
    assert await _refusal(context(), files.add(f"/{name}", HOSTILE[name])) == "unsafe_archive"
    assert [info async for info in objects.list("manifests/")] == []


async def test_an_archive_may_not_hold_more_than_a_model_may(files: FileServer, context: MakeContext) -> None:
    body = _zip({"a": b"\0" * (4 * MIB)})
    assert await _refusal(context(max_bytes=MIB), files.add("/m.zip", body)) == "model_too_large"


async def test_an_archive_with_too_many_files_is_refused(files: FileServer, context: MakeContext) -> None:
    body = _tar({f"f{number}": b"" for number in range(10_001)}, "w")
    assert await _refusal(context(), files.add("/m.tar", body)) == "unsafe_archive"


async def test_an_empty_archive_is_no_model(files: FileServer, context: MakeContext) -> None:
    def nothing(request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        send(request, 200, _zip({}), {})

    assert await _refusal(context(), files.route("/m.zip", nothing)) == "no_model_files"
