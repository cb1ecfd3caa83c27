"""Names of task types, as people write them."""

import pytest

from shared.flows.task_types import canonical_name, find, same_name
from tests.shared.flows.kinds import TYPES


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("Web.ExtractText", "web.extract_text"),
        ("web.extract_text", "web.extract_text"),
        ("WEB.EXTRACT_TEXT", "web.extract_text"),
        ("web.extract-text", "web.extract_text"),
        ("web.extractText", "web.extract_text"),
        ("OpenAI.Text.Summarize", "openai.text.summarize"),
        ("OpenAI.Audio.TTS", "openai.audio.tts"),
        ("JSON.Transform", "json.transform"),
        ("Flow.ForEach", "flow.foreach"),
        ("flow.foreach", "flow.foreach"),
        (" text.size ", "text.size"),
    ],
)
def test_a_canonical_name(spelled: str, name: str) -> None:
    assert canonical_name(spelled) == name
    found = find(TYPES, spelled)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("spelled", ["web_extract_text", "WebExtractText", "webextracttext", "web-extract.text"])
def test_separators_do_not_matter(spelled: str) -> None:
    found = find(TYPES, spelled)
    assert found is not None
    assert found.name == "web.extract_text"


@pytest.mark.parametrize(
    "spelled", ["", ".", "web", "web.extract", "web.extract_text2", "ｗeb.extract_text", "web/extract_text"]
)
def test_other_names_are_not_found(spelled: str) -> None:
    assert find(TYPES, spelled) is None


def test_nothing_is_not_the_same_as_separators() -> None:
    assert not same_name(".", "_")
