"""Reads the seed document: the JSON requests and the form of each section, as they stand there."""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "seeds" / "wizard-api-steps.md"
HEADING = re.compile(r"^#+ +(.+?) *$")
COMMENT = re.compile(r"(?m)(?<![:\"\w])//.*$")
FORM = re.compile(r"--form '(\w+)=(.*)'")


def _blocks(language: str) -> dict[str, str]:
    """The code blocks of one language by the heading above them."""
    found: dict[str, list[str]] = {}
    heading, inside = "", None
    for line in PAGE.read_text().splitlines():
        if inside is None and (match := HEADING.match(line)):
            heading = match.group(1)
        elif line.startswith("```"):
            inside = line[3:] if inside is None else None
        elif inside == language:
            found.setdefault(heading, []).append(line)
    return {heading: "\n".join(lines) for heading, lines in found.items()}


def requests(heading: str) -> list[dict[str, Any]]:
    """The JSON objects of a section, in their order, without the comments."""
    text = COMMENT.sub("", _blocks("json")[heading]).strip()
    decoder, found = json.JSONDecoder(), []
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


def headings() -> set[str]:
    return set(_blocks("json"))


def form() -> dict[str, str]:
    """The fields of the curl form, with the quotes that it has."""
    [text] = _blocks("curl").values()
    return dict(FORM.findall(text))
