"""Pins and authorities of outgoing requests, from the settings."""

import ssl
from pathlib import Path

import pytest

from shared import settings as settings_module
from shared.security.addresses import AddressPolicy, AddressRefused, check_url, guarded_client
from shared.security.outgoing import outgoing
from shared.security.pins import parse_pin
from tests.serving import FileServer


def test_the_setting_resolve_is_checked() -> None:
    load = settings_module.load
    assert load({"STEPWAY_RESOLVE": "a.example:443:[::1]:8443, b.example:80:10.0.0.1"}).resolve == [
        "a.example:443:[::1]:8443", "b.example:80:10.0.0.1",
    ]  # fmt: skip
    pins = outgoing(load({"STEPWAY_RESOLVE": "A.example:443:[::1]:8443,b.example:80:10.0.0.1"})).policy.pins
    assert [(pin.host, pin.port, pin.address, pin.to_port) for pin in pins] == [
        ("a.example", 443, "::1", 8443), ("b.example", 80, "10.0.0.1", 80),
    ]  # fmt: skip
    for wrong in ("a.example", "a.example:443", "a.example:443:localhost", "a.example:0:1.2.3.4", "a:443:1.2.3.4:x",
                  ":443:1.2.3.4", "a.example:443:1.2.3.4:70000", "a.example:443:[::1", "a b:1:1.2.3.4"):  # fmt: skip
        with pytest.raises(ValueError, match=r"must|names no"):
            load({"STEPWAY_RESOLVE": wrong})
    assert load({}).flow_openai_base_url == "https://api.openai.com/v1"


def test_an_authority_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        outgoing(settings_module.Settings(outbound_ca=tmp_path / "none.pem"))


def test_a_file_without_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ssl.SSLError):
        outgoing(settings_module.Settings(outbound_ca=tmp_path / "ca.pem"))


async def test_a_pinned_host_is_found_where_the_operator_says() -> None:
    with FileServer() as server:
        server.add("/x", b"pinned")
        policy = AddressPolicy(pins=(parse_pin(f"Name.Invalid:80:127.0.0.1:{server.port}"),))
        async with guarded_client(policy) as client:
            for url in ("http://name.invalid/x", "http://NAME.invalid.:80/x"):
                assert (await client.get(url)).content == b"pinned"
            with pytest.raises(AddressRefused):
                await client.get(f"http://127.0.0.1:{server.port}/x")
        assert server.seen[0].headers["host"] == "name.invalid"
        check_url("http://name.invalid/", policy)
