"""Fields as people write them."""

from typing import Any

import pytest

from stepway.cli.values import Unreadable, enum, hint, read

INTEGER: dict[str, Any] = {"type": ["integer", "null"]}
RANGE: dict[str, Any] = {"anyOf": [{"type": "array", "prefixItems": [{"type": "number"}] * 2}, {"type": "null"}]}
MODALITY: dict[str, Any] = {
    "anyOf": [{"enum": ["llm", "image"], "type": "string"}, {"type": "array", "items": {"enum": ["llm", "image"]}}]
}
TAGS: dict[str, Any] = {
    "type": "array",
    "items": {"properties": {"name": {"type": "string"}, "color": {"type": "string", "pattern": "^#[0-9A-Fa-f]{6}$"}}},
}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": ["string", "null"]}, "[x]", "[x]"),
        (INTEGER, "12", 12),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "boolean"}, "Yes", True),
        ({"type": "boolean"}, "0", False),
        (RANGE, "50,1000", [50, 1000]),
        (RANGE, "[0.5, 2]", [0.5, 2]),
        (MODALITY, "llm", "llm"),
        (MODALITY, "2", "image"),
        (MODALITY, "llm, image", ["llm", "image"]),
        (TAGS, '[{"name": "a", "color": "#000000"}]', [{"name": "a", "color": "#000000"}]),
    ],
)
def test_reads(schema: dict[str, Any], text: str, value: object) -> None:
    assert read(schema, text) == value


@pytest.mark.parametrize(
    ("schema", "text"),
    [(INTEGER, "1.5"), (INTEGER, "many"), ({"type": "boolean"}, "perhaps"), (MODALITY, "smell"), (TAGS, "[{]"),
     ({"type": "string", "enum": ["a", "b"]}, "a,b")],
)  # fmt: skip
def test_says_what_cannot_be_read(schema: dict[str, Any], text: str) -> None:
    with pytest.raises(Unreadable):
        read(schema, text)


def test_hints() -> None:
    assert hint(MODALITY) == "llm or image"
    assert hint(RANGE) == "min,max"
    assert "#336699" in hint(TAGS)
    assert hint({"type": "string"}) == ""
    assert enum({"const": "url"}) == ["url"]
