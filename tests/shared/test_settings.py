"""Settings as they come from the environment."""

import pytest
from pydantic import ValidationError

from shared import settings


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("https://stepway.example:8400/", "stepway.example"),
        ("http://10.0.0.1:8400/prefix", "10.0.0.1"),
        ("https://[fd00::1]", "[fd00::1]"),
    ],
)
def test_our_own_address_is_answered(given: str, host: str) -> None:
    found = settings.load({"STEPWAY_ADVERTISED_URL": given, "STEPWAY_ALLOWED_HOSTS": "localhost"})
    assert found.advertised_url == given.rstrip("/")
    assert found.answered_hosts == ["localhost", host]


def test_without_an_address_only_the_allowed_hosts_are() -> None:
    assert settings.load({"STEPWAY_ALLOWED_HOSTS": "localhost"}).answered_hosts == ["localhost"]


@pytest.mark.parametrize(
    "given",
    [
        "", "stepway.example:8400", "ftp://stepway.example", "https://user:secret@stepway.example", "https://:8400",
        "https://stepway.example/?a=b", "https://stepway.example/#a", "https://stepway.example:99999", "https://a b",
        "https://a\nb",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValidationError):
        settings.load({"STEPWAY_ADVERTISED_URL": given})


BUCKET = {
    "STEPWAY_S3_ENDPOINT": "https://s3.example:9000", "STEPWAY_S3_BUCKET": "models", "STEPWAY_S3_ACCESS_KEY": "key",
    "STEPWAY_S3_SECRET_KEY": "hidden-secret",
}  # fmt: skip


def test_a_bucket_is_described_wholly_and_its_secret_is_not_shown() -> None:
    found = settings.load({**BUCKET, "STEPWAY_S3_PREFIX": "/team/one/"})
    assert (found.s3_bucket, found.s3_prefix, found.s3_region) == ("models", "team/one/", "us-east-1")
    assert "hidden-secret" not in f"{found!r} {found} {found.model_dump_json()}"


@pytest.mark.parametrize(
    "change",
    [
        {"STEPWAY_S3_ENDPOINT": None}, {"STEPWAY_S3_ACCESS_KEY": None}, {"STEPWAY_S3_SECRET_KEY": None},
        {"STEPWAY_S3_SECRET_KEY_FILE": "/a/file"}, {"STEPWAY_S3_ENDPOINT": "https://s3.example/models"},
        {"STEPWAY_S3_ENDPOINT": "s3.example:9000"}, {"STEPWAY_S3_BUCKET": "My_Bucket"}, {"STEPWAY_S3_PREFIX": "a//b"},
        {"STEPWAY_S3_PREFIX": "../a"}, {"STEPWAY_S3_ACCESS_KEY": "a b"}, {"STEPWAY_S3_REGION": "a\nb"},
    ],
    ids=[
        "no-endpoint", "no-key", "no-secret", "two-secrets", "endpoint-path", "no-scheme", "bucket", "prefix", "dots",
        "key", "region",
    ],
)  # fmt: skip
def test_half_a_bucket_is_refused_without_its_secret(change: dict[str, str | None]) -> None:
    given = {name: value for name, value in {**BUCKET, **change}.items() if value is not None}
    with pytest.raises(ValidationError) as raised:
        settings.load(given)
    assert "hidden-secret" not in str(raised.value)
