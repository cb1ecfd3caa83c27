"""JMESPath and JSON Schema, also from people who want to do harm."""

import asyncio
import time
from typing import Any

import pytest

from tests.services.flow.world import World
from tests.serving import FileServer

VALUE = {"items": [{"name": "b", "size": 2}, {"name": "a", "size": 1}], "total": 3}


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("items[].name", ["b", "a"]),
        ("items[?size > `1`].name | [0]", "b"),
        ("sort_by(items, &size)[0].name", "a"),
        ("{n: total, first: items[0].name}", {"n": 3, "first": "b"}),
        ("sum(items[].size)", 3),
        ("nothing.here", None),
        ("@", VALUE),
        ("to_string(items[0])", '{"name":"b","size":2}'),
    ],
)
async def test_queries(world: World, expression: str, result: Any) -> None:
    assert await world.run("json.transform", value=VALUE, expression=expression) == {"result": result}


@pytest.mark.parametrize(
    "expression",
    [
        "items[", "no_such_function(@)", "length(total)", "&total", "", "(" * 4000, "[" * 4000, "a" * 5000, "!" * 4000,
        "to_number('nan')", "to_number('1e999')", "sort_by(items, &nothing)", "abs('x')", "'", "\\", "@.\0",
        "max_by(items, &@)", "é" * 3000,
    ],
)  # fmt: skip
async def test_expressions_that_do_not_work(world: World, expression: str) -> None:
    failed = await world.fails("json.transform", value=VALUE, expression=expression)
    assert (failed.code, failed.retryable) == ("bad_expression", False)


@pytest.mark.parametrize(
    ("expression", "codes"),
    [
        ("|".join(["[@,@]"] * 60), {"too_large"}),  # 2^60 leaves, of 60 lists
        ("|".join(["[@,@,@,@][]"] * 300), {"too_complex"}),
        ("|".join(["[@]"] * 80), {"too_large"}),  # deep
        ("|".join(["join('', [@,@,@,@])"] * 200), {"too_complex"}),
    ],
)
async def test_expressions_that_would_fill_memory(
    world: World, monkeypatch: pytest.MonkeyPatch, expression: str, codes: set[str]
) -> None:
    monkeypatch.setattr("services.flow.parsing.computed.MEMORY", 160 * 1024**2)
    value: Any = "x" if "join" in expression else [1]
    begun = time.monotonic()
    failed = await world.fails("json.transform", value=value, expression=expression)
    assert failed.code in codes
    assert time.monotonic() - begun < 60


async def test_a_result_that_is_too_large(world: World) -> None:
    value = ["x" * 1000] * 1100
    failed = await world.fails("json.transform", value=value, expression="@")
    assert (failed.code, failed.message) == ("too_large", "The result is larger than 1 MiB.")
    assert (await world.run("json.transform", value=value, expression="length(@)"))["result"] == 1100


SCHEMA = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string", "minLength": 2}, "ages": {"items": {"type": "integer"}}},
    "additionalProperties": False,
}


async def test_values_that_fit_and_do_not(world: World) -> None:
    assert await world.run("json.validate", value={"name": "Ada"}, schema=SCHEMA) == {"valid": True, "errors": []}
    done = await world.run("json.validate", value={"name": "A", "ages": [1, "x"], "more": 1}, schema=SCHEMA)
    assert not done["valid"]
    assert {error["path"] for error in done["errors"]} == {"$.name", "$.ages[1]", "$"}
    assert await world.run("json.validate", value=1, schema=False) != await world.run(
        "json.validate", value=1, schema=True
    )
    done = await world.run("json.validate", value="x", schema={"type": "string", "format": "date"})
    assert not done["valid"]
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 5, "exclusiveMaximum": True}
    assert not (await world.run("json.validate", value=5, schema=old))["valid"]
    meta = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    assert not (await world.run("json.validate", value={"type": 1}, schema=meta))["valid"]


async def test_there_are_never_too_many_errors(world: World) -> None:
    done = await world.run("json.validate", value=["x" * 5000] * 500, schema={"items": {"type": "integer"}})
    assert len(done["errors"]) == 100
    assert max(len(error["message"]) for error in done["errors"]) < 400


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such"}, {"$ref": "#/nowhere"}, {"$ref": "#"}, {"pattern": "("}, [], "x", None, {"minLength": -1},
        {"$ref": "file:///etc/passwd"}, {"allOf": [{"$ref": "#/allOf/0"}]}, {"multipleOf": 0}, {"$ref": 1},
        {"patternProperties": {"[": {}}},
    ],
)  # fmt: skip
async def test_schemas_that_cannot_be_used(world: World, schema: Any) -> None:
    failed = await world.fails(
        "json.validate", value={"a": "text"} if schema != {"pattern": "("} else "x", schema=schema
    )
    assert (failed.code, failed.retryable) == ("bad_schema", False)


async def test_nothing_is_fetched(world: World, web: FileServer) -> None:
    url = web.add("/schema.json", b'{"type": "string"}')
    failed = await world.fails("json.validate", value=1, schema={"$ref": url})
    assert (failed.code, web.seen) == ("bad_schema", [])
    assert failed.message == f"The schema refers to {url}, which is not in it; nothing is fetched."
    failed = await world.fails("json.validate", value=1, schema={"$id": url, "$ref": "other.json"})
    assert (failed.code, web.seen) == ("bad_schema", [])


async def test_a_pattern_that_never_ends_is_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.flow.tasks.json_validate.SECONDS", 2.0)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    failed = await world.fails("json.validate", value="a" * 60 + "!", schema={"pattern": "^(a+)+$"})
    ticking.cancel()
    assert ticks > 10  # others had their turn meanwhile
    assert (failed.code, failed.message) == (
        "too_complex", "The validation took longer than 2 seconds and was stopped.",
    )  # fmt: skip
