"""What a wizard can say about a `uri` at once."""

import pytest

from shared.contracts.models import Source
from shared.security.uris import InvalidUri, check_revision, check_uri, parse_hub_uri


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        (Source.HUGGING_FACE, "org/model"),
        (Source.HUGGING_FACE, "gpt2"),
        (Source.HUGGING_FACE, "Org-1/Model.v1_x"),
        (Source.HUGGING_FACE, "org/model-GGUF:q5_k_m"),
        (Source.HUGGING_FACE, "org/model/sub/file.Q4_0.gguf"),
        (Source.URL, "https://example.com/a/model.gguf"),
        (Source.URL, "http://10.0.0.7:8080/model.zip?download=true&v=3"),
        (Source.DISK, "/srv/models/a b"),
    ],
)
def test_what_a_source_could_take_passes(source: Source, uri: str) -> None:
    check_uri(source, uri)


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        (Source.HUGGING_FACE, ""),
        (Source.HUGGING_FACE, "https://huggingface.co/org/model"),
        (Source.HUGGING_FACE, "../etc/passwd"),
        (Source.HUGGING_FACE, "org/..gguf"),
        (Source.HUGGING_FACE, "org/model/../x.gguf"),
        (Source.HUGGING_FACE, "org/model/pytorch_model.bin"),
        (Source.HUGGING_FACE, "org/model:"),
        (Source.HUGGING_FACE, "org/model/x.gguf:Q4_0"),
        (Source.HUGGING_FACE, "org/mo del"),
        (Source.HUGGING_FACE, "org/model\n"),
        (Source.HUGGING_FACE, "o" * 3000),
        (Source.URL, "ftp://example.com/x.gguf"),
        (Source.URL, "file:///etc/passwd"),
        (Source.URL, "https://example.com/"),
        (Source.URL, "https:///x.gguf"),
        (Source.URL, "https://example.com:22/x.gguf"),
        (Source.URL, "https://[::1/x.gguf"),
        (Source.URL, "example.com/x.gguf"),
        (Source.URL, "http://169.254.169.254/latest"),
        (Source.DISK, "models/x"),
        (Source.DISK, "/srv/../etc/passwd"),
        (Source.DISK, "/srv/\0x"),
    ],
)
def test_what_no_source_could_take_is_refused(source: Source, uri: str) -> None:
    with pytest.raises(InvalidUri) as refused:
        check_uri(source, uri)
    assert refused.value.code == "invalid_uri"


@pytest.mark.parametrize(
    ("source", "uri", "secret"),
    [
        (Source.URL, "https://user:hunter2@example.com/x.gguf", "hunter2"),
        (Source.URL, "https://hunter2@example.com/x.gguf", "hunter2"),
        (Source.URL, "https://example.com/x.gguf?token=hunter2", "hunter2"),
        (Source.URL, "https://example.com/x.gguf?a=1&X-Amz-Signature=hunter2", "hunter2"),
        (Source.URL, "https://example.com/x.gguf?AWSAccessKeyId=hunter2", "hunter2"),
        (Source.URL, "https://example.com/x.gguf#access_token=hunter2", "hunter2"),
        (Source.URL, "https://example.com/hf_abcdefghijklmnopqrstuvwx/x.gguf", "hf_abcdef"),
        (Source.HUGGING_FACE, "org/hf_abcdefghijklmnopqrstuvwx", "hf_abcdef"),
        (Source.DISK, "/srv/sk-abcdefghijklmnopqrst", "sk-abcdef"),
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(source: Source, uri: str, secret: str) -> None:
    with pytest.raises(InvalidUri) as refused:
        check_uri(source, uri)
    assert refused.value.code == "credentials_in_uri"
    assert secret not in str(refused.value)


def test_a_hub_uri_is_taken_apart() -> None:
    assert parse_hub_uri("org/model:q5_k_m").quantization == "Q5_K_M"
    parsed = parse_hub_uri("org/model/sub/x.gguf")
    assert (parsed.repository, parsed.file, parsed.quantization) == ("org/model", "sub/x.gguf", None)


@pytest.mark.parametrize("revision", ["../main", "a b", "", "x" * 300, "main?x=1", "-x"])
def test_a_revision_is_a_name_of_git(revision: str) -> None:
    check_revision("refs/pr/12")
    check_revision(None)
    with pytest.raises(InvalidUri):
        check_revision(revision)
