"""`stepway check`: each wrong setting is one finding that says what to do, against a real MinIO."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.embedded.check import CHECKS, run_check
from shared.db import migrate
from shared.objects import s3_check
from shared.security.envelope import Keyring
from shared.settings import Settings
from tests.postgres import server
from tests.testbed.certificates import Authority
from tests.testbed.machine import need
from tests.testbed.minio import PASSWORD, USER, Minio
from tests.testbed.processes import free_ports


def checked(settings: dict[str, Any], tmp_path: Path) -> tuple[int, dict[str, list[tuple[str, str]]], str]:
    """The exit code, (level, sentence) of each finding by its check, and all that was printed."""
    said: list[str] = []
    code = run_check(
        Settings.model_validate({"data_dir": tmp_path / "data", **settings}), as_json=True, say=said.append
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for one in json.loads(said[0])["findings"]:
        found.setdefault(one["check"], []).append((one["level"], f"{one['message']} {one['remedy']}"))
    return code, found, said[0]


def s3(minio: Minio, **changes: Any) -> dict[str, Any]:
    given = {
        "s3_endpoint": minio.endpoint, "s3_bucket": changes.get("s3_bucket") or minio.bucket(),
        "s3_access_key": USER, "s3_secret_key": PASSWORD,
    }  # fmt: skip
    return {**given, **changes}


def test_all_is_well(minio: Minio, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    Keyring.load_or_create(tmp_path / "data" / "encryption.key")
    settings = s3(minio, s3_prefix="team/")
    code, found, printed = checked(settings, tmp_path)
    assert code == 0, found
    assert {level for findings in found.values() for level, _ in findings} == {"ok"}
    assert any("We may put, read, list, upload in parts and delete" in text for _, text in found["object store"])
    assert list(minio.client.list_objects(settings["s3_bucket"], recursive=True)) == []  # no probe is left
    assert PASSWORD not in printed
    assert not list(minio.client._list_multipart_uploads(settings["s3_bucket"]).uploads)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"s3_endpoint": "http://no-such-host.invalid:9000"}, "No address is known for no-such-host.invalid"),
        ({"s3_endpoint": "https://127.0.0.1:{port}"}, "does not speak TLS"),
        ({"s3_endpoint": "http://127.0.0.1:{free}"}, "refuses the connection"),
        ({"s3_access_key": "nobody"}, "does not know the access key. Set STEPWAY_S3_ACCESS_KEY"),
        ({"s3_secret_key": "wrong-secret-key"}, "does not accept the secret key. Set the one that belongs"),
        ({"s3_bucket": "no-such-bucket"}, "has no bucket no-such-bucket. Make it, or set STEPWAY_S3_BUCKET"),
        ({"s3_secret_key": None, "s3_secret_key_file": "/no/such/file"}, "(/no/such/file) cannot be read"),
        ({"s3_ca": "/no/such/ca.pem"}, "STEPWAY_S3_CA (/no/such/ca.pem) cannot be read"),
    ],
    ids=["host", "https", "port", "access-key", "secret-key", "bucket", "secret-file", "ca-file"],
)
def test_what_is_wrong_with_the_bucket_is_said(
    minio: Minio, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    if endpoint := changes.get("s3_endpoint"):
        changes = {**changes, "s3_endpoint": endpoint.format(port=minio.port, free=free_ports(1)[0])}
    code, found, printed = checked(s3(minio, **changes), tmp_path)
    assert code == 1
    (only,) = [text for level, text in found["object store"] if level == "wrong"]
    assert expected in only
    assert PASSWORD not in printed
    assert "wrong-secret-key" not in printed


ALL = {"s3:PutObject", "s3:GetObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
       "s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetBucketLocation", "s3:GetLifecycleConfiguration",
       "s3:GetBucketVersioning"}  # fmt: skip


def limited(minio: Minio, name: str, lacking: set[str]) -> dict[str, Any]:
    """A user who may do all in a bucket of its own, but for what is lacking."""
    bucket = minio.bucket()
    statement = {"Effect": "Allow", "Action": sorted(ALL - lacking),
                 "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]}  # fmt: skip
    minio.admin.policy_add(name, policy={"Version": "2012-10-17", "Statement": [statement]})
    minio.admin.user_add(name, f"{name}-secret")
    minio.admin.policy_set(name, user=name)
    return s3(minio, s3_bucket=bucket, s3_access_key=name, s3_secret_key=f"{name}-secret")


@pytest.mark.parametrize(
    ("name", "lacking", "expected"),
    [
        ("noput", {"s3:PutObject"}, ["may not put objects", "may not upload in parts"]),
        ("noget", {"s3:GetObject"}, ["may not read objects"]),
        ("nodelete", {"s3:DeleteObject"}, ["may not delete objects"]),
        ("nolist", {"s3:ListBucket"}, ["may not list objects"]),
        ("noparts", {"s3:ListBucketMultipartUploads"}, ["may not upload in parts"]),
    ],
    ids=["put", "get", "delete", "list", "parts"],
)
def test_each_permission_that_lacks_is_named(
    minio: Minio, tmp_path: Path, name: str, lacking: set[str], expected: list[str]
) -> None:
    code, found, _ = checked(limited(minio, name, lacking), tmp_path)
    assert code == 1
    wrong = [text for level, text in found["object store"] if level == "wrong"]
    assert len(wrong) == len(expected), found
    for sentence, text in zip(expected, wrong, strict=True):
        assert sentence in text
        assert "s3:" in text


@pytest.fixture
def secure() -> Iterator[tuple[Minio, Path]]:
    """A server with TLS, and the file of its authority."""
    need("minio")
    with tempfile.TemporaryDirectory(prefix="stepway-certs-") as name:
        folder, authority = Path(name), Authority.make()
        pair = authority.issue("minio", names=("127.0.0.1", "localhost"))
        (folder / "public.crt").write_bytes(pair.certificate)
        (folder / "private.key").write_bytes(pair.key)
        ca = folder / "ca.pem"
        ca.write_bytes(authority.pair.certificate)
        server = Minio(certificates=folder, ca=ca)
        try:
            yield server, ca
        finally:
            server.close()


def test_tls_needs_the_right_authority(secure: tuple[Minio, Path], tmp_path: Path) -> None:
    minio, ca = secure
    bucket = minio.bucket()
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.make("other").pair.certificate)
    assert checked(s3(minio, s3_bucket=bucket, s3_ca=ca), tmp_path)[0] == 0
    for settings, expected in (
        (s3(minio, s3_bucket=bucket), "has a certificate that is not accepted"),
        (s3(minio, s3_bucket=bucket, s3_ca=other), "has a certificate that is not accepted"),
        (s3(minio, s3_bucket=bucket, s3_endpoint=f"http://127.0.0.1:{minio.port}"), "http or https"),
    ):
        code, found, _ = checked(settings, tmp_path)
        assert code == 1
        assert [level for level, _ in found["object store"]] == ["wrong"]
        assert expected in found["object store"][0][1]


def test_another_region_is_named(tmp_path: Path) -> None:
    need("minio")
    server = Minio(region="eu-test-1")
    try:
        bucket = server.bucket()
        assert checked(s3(server, s3_bucket=bucket, s3_region="eu-test-1"), tmp_path)[0] == 0
        code, found, _ = checked(s3(server, s3_bucket=bucket), tmp_path)
        assert code == 1
        assert "region" in found["object store"][0][1]
        assert "STEPWAY_S3_REGION" in found["object store"][0][1]
    finally:
        server.close()


def test_a_clock_that_is_off_is_told(minio: Minio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skew = s3_check._skew
    monkeypatch.setattr(s3_check, "_skew", lambda endpoint, ca: (skew(endpoint, ca) or 0) + 300)
    code, found, _ = checked(s3(minio), tmp_path)
    assert code == 1
    assert any("clock is" in text and "ahead" in text and "NTP" in text for _, text in found["object store"])


def test_the_database_is_asked(tmp_path: Path) -> None:
    url = server().clone("template1")
    try:
        code, found, _ = checked({"database_url": url}, tmp_path)
        assert (code, found["database"][0][0]) == (0, "ok")
        assert "empty" in found["database"][0][1]
        migrate.upgrade(url)
        assert "tables of this version" in checked({"database_url": url}, tmp_path)[1]["database"][0][1]
    finally:
        server().drop(url)
    code, found, printed = checked({"database_url": "postgresql://u:hidden@127.0.0.1:1/none"}, tmp_path)
    assert code == 1
    assert "does not let us in" in found["database"][0][1]
    assert "hidden" not in printed
    assert checked({"database_url": "nonsense"}, tmp_path)[1]["database"][0][0] == "wrong"


@pytest.mark.parametrize(
    ("settings", "check", "expected"),
    [
        ({"hf_endpoint": "hub.example"}, "hub", "HF_ENDPOINT"),
        ({"host": "0.0.0.0"}, "allowed hosts", "STEPWAY_ALLOWED_HOSTS"),
        ({"allowed_hosts": ["https://a.example"]}, "allowed hosts", "without scheme"),
        ({"advertised_url": "http://127.0.0.1:8400"}, "advertised address", "loopback"),
        ({"advertised_url": "http://no-such-host.invalid"}, "advertised address", "No address is known"),
        ({"advertised_ca": "/x.pem"}, "advertised address", "without an address"),
        ({"model_roots": ["/no/such/folder"]}, "model roots", "/no/such/folder"),
        (
            {"outbound_ca": "/no/such/ca.pem"},
            "outgoing requests",
            "STEPWAY_OUTBOUND_CA: /no/such/ca.pem cannot be read",
        ),
    ],
    ids=["hub", "listening", "scheme", "loopback", "unknown-host", "only-ca", "roots", "outbound-ca"],
)
def test_other_settings(settings: dict[str, Any], check: str, expected: str, tmp_path: Path) -> None:
    code, found, _ = checked(settings, tmp_path)
    assert code == 1
    assert [level for level, _ in found[check]] == ["wrong"]
    assert expected in found[check][0][1]


def test_folders_and_the_key(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    assert "chmod 700" in checked({}, tmp_path)[1]["data directory"][0][1]
    data.chmod(0o700)
    (data / "encryption.key").write_text("nonsense")
    code, found, printed = checked({}, tmp_path)
    assert code == 1
    assert found["data directory"] == [("ok", f"{data} is ours alone. ")]
    assert found["encryption key"][0][0] == "wrong"
    assert "nonsense" not in printed


def test_it_can_be_read_as_lines(tmp_path: Path) -> None:
    said: list[str] = []
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "hf_endpoint": "x"})
    assert run_check(settings, say=said.append) == 1
    assert all("\n" not in line for line in said)
    assert {name for name, _ in CHECKS} >= {line[6:].partition(":")[0] for line in said}
    assert [line for line in said if line.startswith("WRONG hub: ")]
    assert not (tmp_path / "data").exists()  # it changes nothing
