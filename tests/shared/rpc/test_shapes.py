"""What goes through a call comes out as it was, whatever a method takes and gives."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from shared.rpc import parts
from shared.rpc.methods import methods_of
from tests.shared.rpc.ports import NAMES, SIDECAR, Part, Serving, ShapesPort, Whole, serving

ID = UUID(int=7)


@pytest.fixture
async def app() -> AsyncIterator[Serving]:
    async with serving() as made:
        yield made


async def test_bytes(app: Serving) -> None:
    port: ShapesPort = app.caller()
    for content in (b"", b"text", bytes(range(256)), b"\xff\xfe" * 1000):
        assert await port.raw(content) == content
        assert await port.maybe_raw(content) == content
    assert await port.maybe_raw(None) is None


async def test_sequences_models_and_nothing(app: Serving) -> None:
    port: ShapesPort = app.caller()
    assert await port.texts(("a", "b"), {"one": 1, "none": None}) == ["a", "b", "one=1", "none=None"]
    assert await port.texts([], {}) == []
    part, other = Part(id=ID), Part(id=UUID(int=8), kind="big", note="Größe")
    whole = await port.whole(Whole(parts=[part], more={"deep": [{"er": None}]}), [other])
    assert whole == Whole(parts=[part, other], more={"deep": [{"er": None}]})
    assert await port.pair(ID, [ID, UUID(int=9)]) == [ID, ID, UUID(int=9)]
    await port.nothing()
    assert app.shapes.calls == 1


async def test_defaults_and_names(app: Serving) -> None:
    port: ShapesPort = app.caller()
    assert await port.with_defaults(1) == [1, "two", None]
    assert await port.with_defaults(1, third=3) == [1, "two", 3]
    assert await port.with_defaults(second="zwei", first=1) == [1, "zwei", None]


async def test_what_a_newer_caller_adds_is_passed_over(app: Serving) -> None:
    """As in a rolling upgrade: an argument, and a member of one, that the older callee does not know."""
    answer = await app.ask("with_defaults", SIDECAR | NAMES, b'{"first": 1, "third": 3, "fourth": {"x": 4}}')
    assert (answer.status_code, answer.json()) == (200, [1, "two", 3])
    part = {"id": str(ID), "kind": "big", "note": None, "colour": "red"}
    answer = await app.ask("whole", SIDECAR | NAMES, to_json({"one": {"parts": [], "depth": 1}, "parts": [part]}))
    assert answer.status_code == 200
    assert answer.json() == Whole(parts=[Part(id=ID, kind="big")]).model_dump(mode="json")


async def test_what_a_newer_callee_adds_is_passed_over(app: Serving) -> None:
    newer = {"parts": [{"id": str(ID), "colour": "red"}], "depth": 1}
    assert methods_of(ShapesPort)["whole"].answer.validate_json(to_json(newer)) == Whole(parts=[Part(id=ID)])


async def test_a_call_that_the_port_does_not_have_is_the_callers_fault(app: Serving) -> None:
    port: Any = app.caller()
    for args, named in (((1,), {"fourth": 4}), ((1, "two", 3, 4), {}), ((), {}), ((1,), {"first": 1})):
        with pytest.raises(TypeError):
            await port.with_defaults(*args, **named)


async def test_numbers_that_json_has_not(app: Serving) -> None:
    port: ShapesPort = app.caller()
    assert await port.number(math.inf) == math.inf
    assert await port.number(-math.inf) == -math.inf
    assert math.isnan(await port.number(math.nan))


async def test_the_caller_is_known_while_its_call_is_worked_on(app: Serving) -> None:
    port: ShapesPort = app.caller()
    assert await port.who() == "model"
    assert await app.shapes.who() is None


async def test_streams(app: Serving) -> None:
    port: ShapesPort = app.caller()
    parts = [Part(id=UUID(int=number), note=f"part {number}") for number in range(300)]
    assert [one async for one in port.parts(parts)] == parts
    assert [one async for one in port.parts([])] == []
    chunks = [bytes(range(256)), b"", b"\n\n"]
    assert [one async for one in port.chunks(chunks)] == chunks


async def test_lines_that_hold_other_ends_of_lines_stay_whole(app: Serving) -> None:
    """A pod's log may hold any of them."""
    port: ShapesPort = app.caller()
    lines = ["a\nb", "a\r\nb", "a\x0bb\x0cc", "a\x1cb\x1dc\x1ed", "a\x85b", "a\u2028b\u2029c", "", "\x00"]
    assert [one async for one in port.lines(lines, "")] == lines


async def test_a_line_is_there_before_the_next_is_made(app: Serving) -> None:
    port: ShapesPort = app.caller()
    lines = port.lines(["first"], "hold")
    assert await anext(lines) == "first"
    app.shapes.hold.set()
    assert [one async for one in lines] == []


async def test_a_stream_that_nobody_reads_ends(app: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SILENT", 0.05)
    await app.ask("lines", SIDECAR | NAMES, b'{"given": ["first"], "end": "hold"}')
    async with asyncio.timeout(60):
        await app.shapes.closed.wait()


async def test_a_reader_who_leaves_ends_the_stream_over_there(app: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    port: ShapesPort = app.caller()
    monkeypatch.setattr(parts, "SILENT", 600.0)  # it is told
    lines = port.lines(["first", "second"], "hold")
    assert await anext(lines) == "first"
    await lines.aclose()  # type: ignore[attr-defined]  # it is a generator
    async with asyncio.timeout(60):
        await app.shapes.closed.wait()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner,
                                                                max_size=4),
    max_leaves=12,
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=200, deadline=None)
@given(data=JSON)
def test_any_json_comes_back_the_same(data: Any) -> None:
    method = methods_of(ShapesPort)["any"]
    assert method.unpack(method.pack((data,), {})) == {"data": data}
    assert method.answer.validate_json(method.answer.dump_json(data)) == data


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=500), texts=st.lists(TEXT), named=st.dictionaries(TEXT, st.integers() | st.none()))
def test_any_bytes_and_texts_come_back_the_same(content: bytes, texts: list[str], named: dict[str, int | None]) -> None:
    methods = methods_of(ShapesPort)
    assert methods["raw"].unpack(methods["raw"].pack((content,), {})) == {"content": content}
    raw = methods["raw"].answer
    assert raw.validate_json(raw.dump_json(content)) == content
    packed = methods["texts"].pack((texts,), {"named": named})
    assert methods["texts"].unpack(packed) == {"given": texts, "named": named}


async def test_any_lines_come_through_a_stream(app: Serving) -> None:
    port: ShapesPort = app.caller()
    every = [chr(number) * 2 for number in range(0x3000)]
    assert [one async for one in port.lines(every, "")] == every
