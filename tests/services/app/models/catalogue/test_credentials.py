"""Kinds of credentials: which values pass, which do not, and that no value is ever repeated."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.app.models.catalogue import credential_type, credential_types

GOOD = {
    "huggingface": {"token": "hf_abcdefghij"},
    "openai": {"api_key": "sk-abc", "base_url": "https://models.example.com:8443/v1"},
    "openai_compatible": {"base_url": "http://127.0.0.1:8000/v1"},
    "anthropic": {"api_key": "sk-ant-abc", "base_url": ""},
    "azure": {"api_key": "abc", "endpoint": "https://mine.openai.azure.com/", "api_version": "2024-10-21"},
    "bedrock": {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "a/b+c", "region": "eu-central-1"},
    "vertex_ai": {"service_account_json": '{"type": "service_account"}', "location": "europe-west4"},
    "api_key": {"api_key": "abc"},
}


def codes(kind: str, values: dict[str, str | None]) -> list[tuple[str | None, str]]:
    found = credential_type(kind)
    assert found is not None
    return [(fault.param, fault.code) for fault in found.faults(values)]


@pytest.mark.parametrize("kind", [kind.key for kind in credential_types()])
def test_good_values_pass(kind: str) -> None:
    assert codes(kind, {**GOOD[kind]}) == []


@pytest.mark.parametrize(
    ("kind", "change", "fault"),
    [
        ("openai", {"api_key": None}, ("api_key", "missing")),
        ("openai", {"api_key": ""}, ("api_key", "missing")),
        ("openai", {"api_key": "two words"}, ("api_key", "invalid")),
        ("openai", {"api_key": "line\nbreak"}, ("api_key", "invalid")),
        ("openai", {"api_key": "sk-abc\n"}, ("api_key", "invalid")),
        ("openai", {"api_key": "sk-\x00"}, ("api_key", "invalid")),
        ("openai", {"api_key": "a" * 5000}, ("api_key", "invalid")),
        ("openai", {"api_key": "a" * 20000}, ("api_key", "too_long")),
        ("openai", {"base_url": "ftp://example.com"}, ("base_url", "invalid")),
        ("openai", {"base_url": "https://user:secret@example.com"}, ("base_url", "invalid")),
        ("openai", {"base_url": "https://example.com/v1?key=secret"}, ("base_url", "invalid")),
        ("openai", {"token": "x"}, ("token", "unknown_field")),
        ("azure", {"endpoint": "http://mine.openai.azure.com"}, ("endpoint", "invalid")),
        ("azure", {"api_version": "latest please"}, ("api_version", "invalid")),
        ("bedrock", {"region": "Frankfurt"}, ("region", "invalid")),
        ("bedrock", {"access_key_id": "akia"}, ("access_key_id", "invalid")),
        ("vertex_ai", {"service_account_json": "[]"}, ("service_account_json", "invalid")),
        ("vertex_ai", {"service_account_json": "[" * 9000}, ("service_account_json", "invalid")),
        ("vertex_ai", {"location": "Europe"}, ("location", "invalid")),
    ],
)
def test_a_bad_value_is_one_fault(kind: str, change: dict[str, str | None], fault: tuple[str, str]) -> None:
    assert codes(kind, {**GOOD[kind], **change}) == [fault]


def test_every_fault_is_told_at_once() -> None:
    assert codes("azure", {"api_version": "x", "zone": "y"}) == [
        ("api_key", "missing"),
        ("endpoint", "missing"),
        ("api_version", "invalid"),
        ("zone", "unknown_field"),
    ]


@given(st.text(min_size=8).filter(lambda text: text.strip()))
def test_no_fault_repeats_a_value(value: str) -> None:
    for kind in credential_types():
        for field in kind.fields:
            fault = field.fault(value)
            if fault and value not in f"{field.label} does not have the form that is expected.":
                assert value not in fault.message


def test_secrets_are_marked() -> None:
    secret = {field.name for kind in credential_types() for field in kind.fields if field.secret}
    assert secret == {"token", "api_key", "secret_access_key", "session_token", "service_account_json"}
    bedrock = credential_type("bedrock")
    assert bedrock is not None
    assert bedrock.secret_fields == {"secret_access_key", "session_token"}


def test_litellm_parameters_do_not_clash() -> None:
    for kind in credential_types():
        parameters = [field.litellm for field in kind.fields]
        assert len(set(parameters)) == len(parameters)
        assert all(re.fullmatch(r"(api|aws|vertex)_[a-z_]+", parameter) for parameter in parameters)
