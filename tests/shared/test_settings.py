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
