"""The catalogue's file: it keeps its own rules, its ids never change, and a broken one is refused."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from uuid import UUID

import pytest

from services.app.models.catalogue import (
    ProviderType,
    cloud_models,
    credential_type,
    credential_types,
    known_as_of,
    loader,
    providers,
)
from shared.contracts.models import Modality

FILE = Path(loader.__file__).with_name("catalogue.yaml")


def test_has_the_three_local_sources_and_the_well_known_clouds() -> None:
    by_type = {kind: [p.key for p in providers() if p.type is kind] for kind in ProviderType}
    assert by_type[ProviderType.HUGGING_FACE] == ["hugging_face"]
    assert by_type[ProviderType.URL] == ["url"]
    assert by_type[ProviderType.DISK] == ["disk"]
    assert {
        *("openai", "anthropic", "gemini", "vertex_ai", "azure", "bedrock", "mistral", "cohere", "groq"),
        *("together_ai", "fireworks_ai", "deepseek", "xai", "perplexity", "openrouter", "nvidia_nim", "huggingface"),
        *("replicate", "cerebras", "ollama", "openai_compatible"),
    } <= set(by_type[ProviderType.CLOUD_MODEL])


def test_has_models_of_every_modality() -> None:
    assert len(cloud_models()) >= 60
    assert {modality for model in cloud_models() for modality in model.modality} == set(Modality)


@pytest.mark.parametrize(
    ("uri", "identity"),
    [
        ("openai/gpt-4o", "47eefe3a-910d-5c7e-b751-c4ebeb83787b"),
        ("anthropic/claude-opus-5", "b085d9e9-b596-5591-a7e8-1b2ff73d7955"),
        ("bedrock/amazon.nova-pro-v1:0", "e7f72a57-2156-5b0b-b708-77913fb1643f"),
    ],
)
def test_model_ids_are_the_same_for_ever(uri: str, identity: str) -> None:
    assert [str(model.id) for model in cloud_models() if model.uri == uri] == [identity]


@pytest.mark.parametrize(
    ("key", "identity"),
    [
        ("openai", "6dbb5152-ca4f-5448-b5da-fdce41ae3225"),
        ("hugging_face", "d97ba2b8-5e57-5fca-8d8a-8fd5d9e508f2"),
        ("disk", "581c8683-b9ab-5a70-83f8-0a8497b96ffc"),
    ],
)
def test_provider_ids_are_the_same_for_ever(key: str, identity: str) -> None:
    assert [str(provider.id) for provider in providers() if provider.key == key] == [identity]


def test_no_id_is_given_twice() -> None:
    ids: list[UUID] = [provider.id for provider in providers()] + [model.id for model in cloud_models()]
    assert len(set(ids)) == len(ids)
    assert {identity.version for identity in ids} == {5}


def test_two_readings_give_the_same_in_the_same_order() -> None:
    text = FILE.read_text(encoding="utf-8")
    assert loader.build(text).model_dump_json() == loader.build(text).model_dump_json()
    assert list(loader.build(text).cloud_models) == cloud_models()


def test_a_well_known_model_is_told_rightly() -> None:
    model = next(model for model in cloud_models() if model.uri == "openai/gpt-4o")
    assert (model.context_length, model.max_output, model.input_price, model.output_price) == (128000, 16384, 2.5, 10)
    assert model.modality == (Modality.LLM, Modality.MLLM)
    assert model.icon == "icons/providers/openai.png"
    assert not model.deprecated


def test_prices_and_lengths_are_plausible() -> None:
    for model in cloud_models():
        assert (model.input_price or 0) <= 200, model.uri
        assert (model.output_price or 0) <= 800, model.uri
        assert model.context_length is None or 128 <= model.context_length <= 20_000_000, model.uri
        assert model.max_output is None or model.max_output <= (model.context_length or model.max_output), model.uri


def test_every_cloud_provider_takes_a_credential_that_exists() -> None:
    kinds = {kind.key for kind in credential_types()}
    assert {
        "huggingface",
        "openai",
        "openai_compatible",
        "anthropic",
        "azure",
        "bedrock",
        "vertex_ai",
        "api_key",
    } == kinds
    for provider in providers():
        if provider.type is ProviderType.CLOUD_MODEL:
            assert provider.credential_type in kinds, provider.key
            assert credential_type(provider.credential_type or "") is not None
    assert credential_type("no_such") is None


def test_says_when_it_was_true() -> None:
    assert date(2026, 1, 1) < known_as_of()


def _line_twice(text: str) -> str:
    line = next(line for line in text.splitlines() if "openai/gpt-4o," in line)
    return text.replace(line, f"{line}\n{line}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_line_twice, "uri twice: openai/gpt-4o"),
        (lambda text: text.replace("uri: openai/gpt-4o,", "uri: opnai/gpt-4o,"), "opnai/gpt-4o: prefix"),
        (lambda text: text.replace("modality: [image]", "modality: [picture]", 1), "modality"),
        (lambda text: text.replace("price: [2.5, 10]", "price: [-1, 10]", 1), "input_price"),
        (lambda text: text.replace("context: 128000", "contxt: 128000", 1), "contxt"),
        (lambda text: text.replace("credential_type: anthropic", "credential_type: anthropc"), "provider anthropic"),
        (lambda text: text.replace('"#2563EB"', '"blue"'), "color"),
        (lambda text: text.replace("tags: [tools,", "tags: [tols,", 1), "tols"),
    ],
)
def test_a_broken_file_is_refused(change: Callable[[str], str], told: str) -> None:
    text = FILE.read_text(encoding="utf-8")
    broken = change(text)
    assert broken != text
    with pytest.raises((ValueError, KeyError), match=told):
        loader.build(broken)
