"""The tasks on texts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.flow.tasks.text_template import _rendered
from stepway.tasks import TaskError
from tests.services.flow.world import World


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", (0, 0, 0, 0)),
        ("Hello, world!", (13, 13, 2, 1)),
        ("zwölf\nBrötchen\n", (15, 17, 2, 2)),
        ("🎈", (1, 4, 1, 1)),
    ],
)
async def test_sizes(world: World, text: str, size: tuple[int, ...]) -> None:
    done = await world.run("text.size", text=text)
    assert (done["characters"], done["bytes"], done["words"], done["lines"]) == size


@pytest.mark.parametrize(
    ("inputs", "text", "truncated"),
    [
        ({"text": "Hello", "max_characters": 5}, "Hello", False),
        ({"text": "Hello!", "max_characters": 5}, "Hell…", True),
        ({"text": "Hello!", "max_characters": 5, "ellipsis": ""}, "Hello", True),
        ({"text": "Hello!", "max_characters": 2, "ellipsis": "..."}, "..", True),
        ({"text": "Hello!", "max_characters": 0}, "", True),
        ({"text": "abe\u0301x", "max_characters": 3, "ellipsis": ""}, "ab", True),
        ({"text": "Hello!", "max_characters": 5.0}, "Hell…", True),
    ],
)
async def test_truncation(world: World, inputs: dict[str, Any], text: str, truncated: bool) -> None:
    assert await world.run("text.truncate", **inputs) == {"text": text, "truncated": truncated}


@pytest.mark.parametrize("limit", [-1, 1.5, float("inf"), float("nan")])
async def test_limits_that_are_none(world: World, limit: float) -> None:
    assert (await world.fails("text.truncate", text="x", max_characters=limit)).code == "bad_limit"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Dear {{name}}, {{ n }} × {{user.mail}}", "Dear Ada, 2 × a@b.c"),
        ("{{list.0}}{{list.1.x}}", "first✓"),
        ("{{yes}} {{none}}|{{user}}", 'true |{"mail": "a@b.c"}'),
        ("{{sly}}", "{{name}}"),  # not looked at again
        ("\\{{name}} {name} }} {", "{{name}} {name} }} {"),
        ("", ""),
    ],
)
async def test_templates(world: World, template: str, text: str) -> None:
    values = {
        "name": "Ada", "n": 2, "user": {"mail": "a@b.c"}, "list": ["first", {"x": "✓"}], "yes": True, "none": None,
        "sly": "{{name}}",
    }  # fmt: skip
    assert await world.run("text.template", template=template, values=values) == {"text": text}


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{{missing}}", "missing_value"), ("{{name.__class__}}", "missing_value"), ("{{list.5}}", "missing_value"),
        ("{{list.-1}}", "missing_value"), ("{{", "bad_template"), ("{{}}", "bad_template"), ("{{ }}", "bad_template"),
        ("{{name", "bad_template"), ("{% for x in y %}{{x}}", "missing_value"), ("{{list.99999999999999}}", "missing_value"),
    ],
)  # fmt: skip
async def test_templates_that_do_not_work(world: World, template: str, code: str) -> None:
    values = {"name": "Ada", "list": ["a"]}
    assert (await world.fails("text.template", template=template, values=values)).code == code


async def test_a_template_cannot_grow_without_end(world: World) -> None:
    failed = await world.fails("text.template", template="{{x}}" * 10_000, values={"x": "y" * 10_000})
    assert failed.code == "too_large"


@given(
    st.text(alphabet="{}\\ab. ", max_size=40), st.dictionaries(st.sampled_from(["a", "b", "a.b"]), st.text(max_size=3))
)
def test_any_template_is_rendered_or_refused(template: str, values: dict[str, str]) -> None:
    code = None
    text = ""
    try:
        text = "".join(_rendered(template, values))
    except TaskError as error:
        code = error.code
    assert code in (None, "bad_template", "missing_value")
    if "{{" not in template:
        assert (code, text) == (None, template)
