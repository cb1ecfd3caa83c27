"""One process whose objects are in a bucket: a model is imported, scanned, served, backed up and restored by way of it."""

import shutil
from pathlib import Path

from services.embedded.backup import run_backup, run_restore
from shared.settings import load
from tests.e2e.conftest import Make
from tests.e2e.instance import Stepway, until
from tests.testbed.minio import PASSWORD, USER, Minio


def in_bucket(make: Make, minio: Minio, bucket: str) -> Stepway:
    return make(
        s3_endpoint=minio.endpoint, s3_bucket=bucket, s3_prefix="team", s3_access_key=USER, s3_secret_key=PASSWORD,
        maintenance_seconds=1,
    )  # fmt: skip


def names(minio: Minio, bucket: str) -> list[str]:
    return [str(one.object_name) for one in minio.client.list_objects(bucket, recursive=True)]


def test_a_model_in_a_bucket_is_imported_scanned_served_and_deleted(make: Make, minio: Minio, model_file: Path) -> None:
    bucket = minio.bucket()
    stepway = in_bucket(make, minio, bucket)
    assert stepway.command("check", "--data-dir", str(stepway.data)).returncode == 0
    stepway.start()
    model, endpoint = stepway.serve(model_file)
    assert stepway.chat(endpoint)
    kinds = {name.split("/")[1] for name in names(minio, bucket)}
    assert {"blobs", "manifests", "scans"} <= kinds
    assert all(name.startswith("team/") for name in names(minio, bucket))
    here = [path for path in (stepway.data / "objects").rglob("*") if path.is_file()]
    assert here == []  # neither objects nor what was copied for the scan
    assert not list(minio.client._list_multipart_uploads(bucket).uploads)
    assert stepway.ended_job(stepway.delete_endpoint(endpoint))["state"] == "succeeded"
    assert stepway.ask("DELETE", f"/models/{model}").status_code < 300
    until(lambda: not names(minio, bucket), what="the bucket to be empty")
    assert PASSWORD not in stepway.said()
    stepway.stop()


def test_a_backup_holds_what_is_in_the_bucket(make: Make, minio: Minio, model_file: Path, folder: Path) -> None:
    bucket = minio.bucket()
    stepway = in_bucket(make, minio, bucket).start()
    model = stepway.made(stepway.import_model(str(model_file)))
    before = {name: minio.client.stat_object(bucket, name).size for name in names(minio, bucket)}
    file = folder / "backup.tar"
    given = {f"STEPWAY_{name.upper()}": str(value) for name, value in stepway.settings.items()}
    settings = load(given, data_dir=stepway.data)
    assert run_backup(settings, file, lambda _: None) == 0
    stepway.stop()
    shutil.rmtree(stepway.data)
    assert run_restore(settings, file, lambda _: None) == 1  # the bucket is not empty
    for name in before:
        minio.client.remove_object(bucket, name)
    assert run_restore(settings, file, lambda _: None) == 0
    assert {name: minio.client.stat_object(bucket, name).size for name in names(minio, bucket)} == before
    assert not [path for path in (stepway.data / "objects").rglob("*") if path.is_file()]
    stepway.start()
    assert stepway.made(stepway.scan(model))
    stepway.stop()
    assert PASSWORD.encode() not in file.read_bytes()


def test_a_bucket_that_refuses_us_is_told_at_the_start(make: Make, minio: Minio) -> None:
    stepway = in_bucket(make, minio, "no-such-bucket")
    stepway.spawn()
    assert stepway.wait() == 1
    assert "has no bucket no-such-bucket" in stepway.said()
    assert "stepway check" in stepway.said()
