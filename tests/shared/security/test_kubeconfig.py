import base64
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.error_codes import CODES
from shared.errors import Problem
from shared.security.kubeconfig import Kubeconfig, KubeconfigPolicy, parse
from shared.security.kubeconfig_server import ServerPolicy
from tests.testbed.certificates import DAY, Authority, as_yaml, authority, encoded, kubeconfig

MARKER = "sekret"
STRICT = ServerPolicy(allow_private=False)
GOOD = as_yaml(kubeconfig())


def jwt(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{body}.{MARKER}"


def client(**given: Any) -> dict[str, Any]:
    pair = authority().issue("someone", **given)
    return {
        "token": None,
        "client-certificate-data": encoded(pair.certificate),
        "client-key-data": encoded(pair.key),
    }


def mismatch() -> dict[str, Any]:
    return {**client(), "client-key-data": client()["client-key-data"]}


def locked_key() -> dict[str, Any]:
    pair = authority().issue("someone")
    key = load_pem_private_key(pair.key, None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sekret"))
    return {"client-certificate-data": encoded(pair.certificate), "client-key-data": encoded(pem)}


def odd_key() -> dict[str, Any]:
    pem = x25519.X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {**client(), "client-key-data": encoded(pem)}


def ca(**given: Any) -> dict[str, Any]:
    return {"certificate-authority-data": encoded(Authority.make(**given).pair.certificate)}


def cluster(**fields: Any) -> bytes:
    return as_yaml(kubeconfig(cluster={name.replace("_", "-"): value for name, value in fields.items()}))


def user(**fields: Any) -> bytes:
    return as_yaml(kubeconfig(user={name.replace("_", "-"): value for name, value in fields.items()}))


def top(**fields: Any) -> bytes:
    return as_yaml(kubeconfig(**fields))


BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (i + 1, i + 1, i, i) for i in range(97, 110))

BAD: list[tuple[str, str, bytes]] = [
    ("empty", "empty", b""),
    ("blank", "empty", b" \n\t\n"),
    ("only comments", "empty", b"# sekret\n"),
    ("null", "empty", b"---\n~\n"),
    ("too large", "too_large", b"#" + b"x" * 256 * 1024),
    ("NUL", "binary", GOOD + b"\x00"),
    ("an archive", "binary", b"\x1f\x8b\x08\x00sekret"),
    ("UTF-16", "binary", GOOD.decode().encode("utf-16")),
    ("Latin 1", "binary", GOOD + "# café".encode("latin-1")),
    ("escaped NUL", "binary", b'kind: "Config\\0sekret"'),
    ("broken YAML", "not_yaml", b"kind: [sekret\n: }"),
    ("a tab for a space", "not_yaml", b"kind:\n\t- sekret"),
    ("a list", "not_yaml", b"- sekret"),
    ("a sentence", "not_yaml", b"sekret"),
    ("a list as a name", "not_yaml", b"? [sekret]\n: x"),
    ("two documents", "several_documents", GOOD + b"---\n" + GOOD),
    ("an anchor bomb", "aliases", BOMB),
    ("an anchor alone", "aliases", b"a: &sekret b"),
    ("an alias to nothing", "aliases", b"a: *sekret"),
    ("a merge key", "aliases", b"<<: {a: sekret}"),
    ("a tag", "tags", b"a: !!python/object/apply:os.system [sekret]"),
    ("a standard tag", "tags", b"a: !!str sekret"),
    ("a tag directive", "tags", b"%TAG ! tag:sekret.example,2000:\n---\na: b"),
    ("a name twice", "duplicate_keys", GOOD + b"kind: Config\n"),
    ("two clusters of one name", "duplicate_keys", as_yaml(kubeconfig(clusters=[{"name": "c"}] * 2))),
    ("deep lists", "too_deep", b"a: " + b"[" * 5000),
    ("deep mappings", "too_deep", b"{a: " * 5000),
    ("very many values", "too_complex", b"a: [" + b"1," * 30_000 + b"]"),
    ("a manifest", "wrong_kind", top(kind="Secret")),
    ("no kind", "wrong_kind", top(kind=None)),
    ("another version", "wrong_kind", top(apiVersion="v2")),
    ("clusters as text", "malformed", top(clusters="sekret")),
    ("a cluster as text", "malformed", top(clusters=["sekret"])),
    ("a cluster's body as text", "malformed", top(clusters=[{"name": "c", "cluster": "sekret"}])),
    ("a nameless user", "malformed", top(users=[{"user": {"token": "sekret"}}])),
    ("a token as a list", "malformed", user(token=["sekret"])),
    ("insecure as text", "malformed", cluster(insecure_skip_tls_verify="true")),
    ("a long context name", "malformed", top(current_context="sekret" * 99)),
    ("no contexts", "no_contexts", top(contexts=None)),
    ("an empty list of contexts", "no_contexts", top(contexts=[])),
    ("no current context", "no_current_context", top(current_context=None)),
    ("an empty current context", "no_current_context", top(current_context="")),
    ("an unknown context", "context_unknown", top(current_context="sekret")),
    ("no such cluster", "cluster_missing", top(clusters=[{"name": "sekret", "cluster": {}}])),
    ("no clusters", "cluster_missing", top(clusters=None)),
    ("no such user", "user_missing", top(users=None)),
    ("a context without a user", "user_missing", top(contexts=[{"name": "main", "context": {"cluster": "c"}}])),
    ("exec", "exec", user(exec={"command": "/bin/sekret", "apiVersion": "v1"})),
    ("exec beside a token", "exec", user(token="sekret", exec={"command": "sekret"})),
    ("auth-provider", "auth_provider", user(auth_provider={"name": "gcp", "config": {"cmd-path": "sekret"}})),
    ("a token file", "file_reference", user(tokenFile="/etc/sekret")),
    ("a CA by path", "file_reference", cluster(certificate_authority="/etc/sekret")),
    ("a client certificate by path", "file_reference", user(client_certificate="sekret.crt")),
    ("a client key by path", "file_reference", user(client_key="sekret.key")),
    ("a proxy", "proxy", cluster(proxy_url="http://sekret.example:3128")),
    ("impersonation", "impersonation", as_yaml(kubeconfig(user={"as": "sekret"}))),
    ("impersonated groups", "impersonation", user(as_groups=["system:masters"])),
    ("a user name", "basic_auth", user(username="admin", password="sekret")),
    ("no credentials", "no_credentials", user(token=None)),
    ("a certificate without its key", "no_credentials", user(**{**client(), "client-key-data": None})),
    ("a key without its certificate", "no_credentials", user(**{**client(), "client-certificate-data": None})),
    ("a CA that is not base64", "bad_base64", cluster(certificate_authority_data="sekret!")),
    ("a key that is not base64", "bad_base64", user(**{**client(), "client-key-data": "sekret!"})),
    ("a CA that is no certificate", "bad_certificate", cluster(certificate_authority_data=encoded(b"sekret"))),
    ("a CA that is a key", "bad_certificate", cluster(
        certificate_authority_data=encoded(authority().pair.key))),
    ("a certificate that is none", "bad_certificate", user(
        **{**client(), "client-certificate-data": encoded(b"sekret")})),
    ("a key that is none", "bad_key", user(**{**client(), "client-key-data": encoded(b"sekret")})),
    ("a key with a passphrase", "bad_key", user(**locked_key())),
    ("a key that TLS does not use", "bad_key", user(**odd_key())),
    ("a huge key", "bad_key", user(**{**client(), "client-key-data": encoded(b"x" * 5000)})),
    ("an expired client", "certificate_expired", user(**client(start=-2 * DAY, end=-DAY))),
    ("an expired CA", "certificate_expired", cluster(**ca(start=-2 * DAY, end=-DAY))),
    ("a client of tomorrow", "certificate_not_yet_valid", user(**client(start=DAY, end=2 * DAY))),
    ("a CA of tomorrow", "certificate_not_yet_valid", cluster(**ca(start=DAY, end=2 * DAY))),
    ("another's key", "key_mismatch", user(**mismatch())),
    ("a token of two words", "bad_token", user(token="sekret token")),
    ("a token with a line end inside", "bad_token", user(token="sekret\nX-Header: 1")),
    ("a huge token", "bad_token", user(token="sekret" * 5000)),
    ("a token of yesterday", "token_expired", user(token=jwt(exp=datetime.now(UTC).timestamp() - 60))),
    ("no server", "server_missing", cluster(server=None)),
    ("another scheme", "server_invalid", cluster(server="ftp://sekret.example")),
    ("no scheme", "server_invalid", cluster(server="sekret.example:6443")),
    ("no host", "server_invalid", cluster(server="https://")),
    ("a port out of range", "server_invalid", cluster(server="https://sekret.example:99999")),
    ("port 0", "server_invalid", cluster(server="https://sekret.example:0")),
    ("a query", "server_invalid", cluster(server="https://sekret.example/?a=b")),
    ("a fragment", "server_invalid", cluster(server="https://sekret.example/#")),
    ("a way up", "server_invalid", cluster(server="https://sekret.example/a/../b")),
    ("a line end", "server_invalid", cluster(server="https://sekret.example\r\nHost: x")),
    ("a backslash", "server_invalid", cluster(server="https://sekret.example\\@evil.example")),
    ("a look-alike", "server_invalid", cluster(server="https://ѕekret.example")),
    ("a broken address", "server_invalid", cluster(server="https://[::1")),
    ("a zone", "server_invalid", cluster(server="https://[fe80::1%25eth0]")),
    ("a short address", "server_invalid", cluster(server="https://127.1")),
    ("an address as a number", "server_invalid", cluster(server="https://2130706433")),
    ("an address in hex", "server_invalid", cluster(server="https://0x7f000001")),
    ("plain http", "plain_http", cluster(server="http://sekret.example")),
    ("a password in the URL", "userinfo", cluster(server="https://admin:sekret@cluster.example")),
    ("localhost", "loopback_address", cluster(server="https://LocalHost.:6443")),
    ("a name below localhost", "loopback_address", cluster(server="https://a.localhost")),
    ("loopback", "loopback_address", cluster(server="https://127.8.8.8")),
    ("loopback in IPv6", "loopback_address", cluster(server="https://[::1]:6443")),
    ("loopback mapped into IPv6", "loopback_address", cluster(server="https://[::ffff:127.0.0.1]")),
    ("loopback by NAT64", "loopback_address", cluster(server="https://[64:ff9b::7f00:1]")),
    ("every address", "loopback_address", cluster(server="https://0.0.0.0")),
    ("link-local", "link_local_address", cluster(server="https://169.254.1.1")),
    ("link-local in IPv6", "link_local_address", cluster(server="https://[fe80::1]")),
    ("a metadata service", "metadata_address", cluster(server="https://169.254.169.254")),
    ("a metadata service in IPv6", "metadata_address", cluster(server="https://[fd00:ec2::254]")),
    ("a metadata service by 6to4", "metadata_address", cluster(server="https://[2002:a9fe:a9fe::]")),
    ("a metadata service by name", "metadata_address", cluster(server="https://metadata.google.internal.")),
    ("multicast", "reserved_address", cluster(server="https://224.0.0.1")),
    ("a reserved address", "reserved_address", cluster(server="https://250.1.1.1")),
    ("unverified", "insecure", cluster(insecure_skip_tls_verify=True, certificate_authority_data=None)),
    ("a TLS name with a space", "tls_server_name", cluster(tls_server_name="sekret name")),
    ("a TLS name with a line end", "tls_server_name", cluster(tls_server_name="sekret\n")),
]  # fmt: skip


@pytest.mark.parametrize(("code", "data"), [pytest.param(code, data, id=name) for name, code, data in BAD])
def test_refuses(code: str, data: bytes) -> None:
    with pytest.raises(Problem) as caught:
        parse(data)
    problem = caught.value
    assert problem.code == f"kubeconfig_{code}"
    chain = f"{problem.detail} {problem!r} {problem.body()} {problem.__cause__!r}"
    assert MARKER not in chain
    assert problem.__suppress_context__ or problem.__context__ is None


def test_every_code_has_its_case() -> None:
    shown = {f"kubeconfig_{code}" for _, code, _ in BAD} | {"kubeconfig_private_address", "kubeconfig_insecure_with_ca"}
    assert shown == {code for code in CODES if code.startswith("kubeconfig_")}


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "[fd12::1]", "[::ffff:10.0.0.1]"]
)
def test_private_addresses_are_the_policys_choice(host: str) -> None:
    data = as_yaml(kubeconfig(cluster={"server": f"https://{host}:6443"}))
    assert parse(data).server == f"https://{host}:6443"
    with pytest.raises(Problem) as caught:
        parse(data, KubeconfigPolicy(addresses=STRICT))
    assert caught.value.code == "kubeconfig_private_address"


def test_loopback_and_link_local_where_the_policy_allows_them() -> None:
    policy = KubeconfigPolicy(addresses=ServerPolicy(allow_loopback=True, allow_link_local=True))
    for server in ("https://127.0.0.1:6443", "https://localhost", "https://169.254.1.1"):
        assert parse(as_yaml(kubeconfig(cluster={"server": server})), policy).server == server
    with pytest.raises(Problem) as caught:
        parse(as_yaml(kubeconfig(cluster={"server": "https://169.254.169.254"})), policy)
    assert caught.value.code == "kubeconfig_metadata_address"


def test_an_unverified_server_needs_an_explicit_yes() -> None:
    policy = KubeconfigPolicy(allow_insecure=True)
    fields = {"insecure-skip-tls-verify": True}
    found = parse(as_yaml(kubeconfig(cluster={**fields, "certificate-authority-data": None})), policy)
    assert found.insecure
    assert not found.summary.verifies_tls
    with pytest.raises(Problem) as caught:
        parse(as_yaml(kubeconfig(cluster=fields)), policy)
    assert caught.value.code == "kubeconfig_insecure_with_ca"


def test_keeps_only_what_the_current_context_needs() -> None:
    document = kubeconfig(user=client(), preferences={"colors": True}, extensions=[{"name": "sekret"}])
    document["users"].append({"name": "other", "user": {"exec": {"command": "sekret"}}})
    document["clusters"][0]["cluster"]["extensions"] = [{"name": "sekret"}]
    document["contexts"].append({"name": "other", "context": {"cluster": "c", "user": "other"}})
    kept = yaml.safe_load(parse(as_yaml(document)).canonical())
    assert set(kept) == {"apiVersion", "kind", "current-context", "clusters", "users", "contexts"}
    assert [len(kept[section]) for section in ("clusters", "users", "contexts")] == [1, 1, 1]
    assert set(kept["clusters"][0]["cluster"]) == {"server", "certificate-authority-data"}
    assert set(kept["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert MARKER not in str(kept)


@pytest.mark.parametrize("fields", [{}, client(), {**client(), "token": "null"}, {"token": jwt(exp=9_999_999_999)}])
def test_the_canonical_form_reads_back_the_same(fields: dict[str, Any]) -> None:
    found = parse(as_yaml(kubeconfig(user=fields, cluster={"tls-server-name": "kubernetes"})))
    again = parse(found.canonical())
    assert again == found
    assert again.canonical() == found.canonical()


def test_accepts_json_a_byte_order_mark_and_a_trailing_line_end() -> None:
    found = parse(b"\xef\xbb\xbf" + json.dumps(kubeconfig(user={"token": "sekret-token\n"})).encode())
    assert found == parse(GOOD)
    assert found.token == "sekret-token"


def test_the_summary_says_what_may_be_known() -> None:
    made = kubeconfig(user={**client(end=3 * DAY), "token": jwt(exp=(datetime.now(UTC) + 2 * DAY).timestamp())})
    summary = parse(as_yaml(made)).summary
    assert (summary.server, summary.context, summary.auth) == (
        "cluster.example.com:6443",
        "main",
        "client_certificate_and_token",
    )
    assert summary.ca_fingerprint is not None
    assert len(summary.ca_fingerprint) == 95
    assert summary.credentials_expire_at is not None
    assert abs(summary.credentials_expire_at - datetime.now(UTC) - 2 * DAY) < timedelta(minutes=1)
    assert parse(as_yaml(kubeconfig(cluster={"server": "https://a.example/k8s/"}))).summary.server == "a.example:443"


def test_no_secret_in_a_repr() -> None:
    found = parse(as_yaml(kubeconfig(user={**client(), "token": "sekret-token"})))
    key = asdict(found)["key_pem"].decode().splitlines()[1]
    for shown in (repr(found), str(found), f"{[found]}", found.summary.model_dump_json()):
        assert MARKER not in shown
        assert key not in shown
        assert "cluster.example.com" in shown


def test_expired_certificates_are_dropped_from_a_bundle() -> None:
    old, good = Authority.make(start=-2 * DAY, end=-DAY), Authority.make()
    bundle = encoded(b"some text\n" + old.pair.certificate + good.pair.certificate)
    assert parse(as_yaml(kubeconfig(cluster={"certificate-authority-data": bundle}))).ca_pem == good.pair.certificate


def attempt(data: bytes) -> Kubeconfig | Problem:
    """Any other exception fails the test by itself."""
    try:
        return parse(data, KubeconfigPolicy(allow_insecure=True))
    except Problem as problem:
        return problem


def outcome(data: bytes) -> None:
    found = attempt(data)
    if isinstance(found, Problem):
        assert found.code.startswith("kubeconfig_")
    else:
        assert attempt(found.canonical()) == found


@given(st.binary(max_size=2000))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    outcome(data)


@given(st.text(max_size=500))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    outcome(text.encode("utf-8", "surrogatepass"))


@given(at=st.integers(0, len(GOOD)), length=st.integers(0, 40), put=st.binary(max_size=20))
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_read_or_refused(at: int, length: int, put: bytes) -> None:
    outcome(GOOD[:at] + put + GOOD[at + length :])


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CLUSTER_FIELDS = st.sampled_from(
    ["server", "certificate-authority-data", "tls-server-name", "insecure-skip-tls-verify"]
)
USER_FIELDS = st.sampled_from(["token", "client-certificate-data", "client-key-data", "username", "exec", "as"])
SECTIONS = st.sampled_from(["clusters", "users", "contexts", "current-context", "kind", "apiVersion"])


@given(
    cluster_fields=st.dictionaries(CLUSTER_FIELDS, ODD, max_size=2),
    user_fields=st.dictionaries(USER_FIELDS, ODD, max_size=2),
    sections=st.dictionaries(SECTIONS, ODD, max_size=1),
)
@settings(max_examples=300, deadline=None)
def test_any_fields_are_read_or_refused(
    cluster_fields: dict[str, Any], user_fields: dict[str, Any], sections: dict[str, Any]
) -> None:
    outcome(as_yaml(kubeconfig(cluster=cluster_fields, user=user_fields) | sections))


@given(st.text(alphabet="htps:/@.[]%0127x\\?#fec: -_a", max_size=60))
@settings(max_examples=500, deadline=None)
def test_any_server_is_read_or_refused(rest: str) -> None:
    outcome(as_yaml(kubeconfig(cluster={"server": f"https://{rest}"})))
