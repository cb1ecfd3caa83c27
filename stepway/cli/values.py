"""Values of a wizard's fields as people write them, read by the field's JSON Schema."""

import json
from typing import Any

from stepway.wizards import Schema, branches, kinds

TRUE, FALSE = ("true", "yes", "y", "1"), ("false", "no", "n", "0")


class Unreadable(Exception):
    """The text is no value of the field; the message says what would be."""


def read(schema: Schema, text: str) -> Any:
    """The value that a text stands for. `Unreadable` when the schema has no such value; the server judges the rest."""
    admitted = kinds(schema)
    choices = enum(schema)
    if choices:
        return _chosen(choices, text, many="array" in admitted)
    if admitted <= {"string"}:
        return text
    if admitted == {"boolean"}:
        return _flag(text)
    if admitted <= {"integer", "number"}:
        return _number(text, whole=admitted == {"integer"})
    if admitted == {"array"} and not text.lstrip().startswith("["):
        return [_plain(part.strip()) for part in text.split(",")]
    return _json(text, "string" in admitted)


def enum(schema: Schema) -> list[Any]:
    """The values that a schema lists, be it for itself or for the items of a list."""
    for branch in branches(schema):
        found = branch.get("enum") or (branch.get("items") or {}).get("enum")
        if found:
            return [one for one in found if one is not None]
        if "const" in branch:
            return [branch["const"]]
    return []


def properties(schema: Schema) -> dict[str, Schema]:
    """The members of an object; none when it is something else."""
    for branch in branches(schema):
        if branch.get("properties"):
            return dict(branch["properties"])
    return {}


def hint(schema: Schema) -> str:
    """What is expected, in a few words; empty for a plain text."""
    choices = enum(schema)
    if choices:
        return (
            " or ".join([", ".join(map(str, choices[:-1])), str(choices[-1])]) if len(choices) > 1 else str(choices[0])
        )
    for branch in branches(schema):
        if branch.get("prefixItems"):
            return "min,max"
        members = (branch.get("items") or {}).get("properties")
        if members:
            return "JSON, e.g. " + json.dumps([{name: _example(one) for name, one in members.items()}])
    admitted = kinds(schema)
    return {"integer": "a whole number", "number": "a number", "boolean": "yes or no", "object": "JSON"}.get(
        next(iter(admitted), "") if len(admitted) == 1 else "", ""
    )


def _example(schema: Schema) -> str:
    return "#336699" if "#" in str(schema.get("pattern", "")) else "…"


def _chosen(choices: list[Any], text: str, *, many: bool) -> Any:
    parts = [part.strip() for part in text.strip("[]").replace('"', "").split(",")]
    found = []
    for part in parts:
        if part.isdigit() and part not in map(str, choices) and 1 <= int(part) <= len(choices):
            found.append(choices[int(part) - 1])
        elif part in map(str, choices):
            found.append(next(one for one in choices if str(one) == part))
        else:
            raise Unreadable(f"{part!r} is none of {', '.join(map(str, choices))}.")
    if len(found) == 1:
        return found[0]
    if not many:
        raise Unreadable("Choose one.")
    return found


def _flag(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise Unreadable("Answer yes or no.")


def _number(text: str, *, whole: bool) -> int | float:
    try:
        return int(text) if whole else _plain_number(text)
    except ValueError as error:
        raise Unreadable(f"{text!r} is not a {'whole ' if whole else ''}number.") from error


def _plain_number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else value


def _plain(text: str) -> Any:
    try:
        return _plain_number(text)
    except ValueError:
        return text


def _json(text: str, or_text: bool) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        if or_text:
            return text
        raise Unreadable(f"This is not JSON: {error}.") from error
