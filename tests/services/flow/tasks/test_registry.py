"""What types there are: ours in their folder, and those of installed packages, however broken."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.flow import tasks
from services.flow.tasks.registry import TASK_TYPES, fault_of, find_all
from stepway.tasks import Field, TaskType

ROOT = Path(__file__).parents[4]
EXTRA = {"__init__", "registry", "document"}


def test_the_folder_and_the_registry_agree() -> None:
    files = {path.stem for path in Path(str(tasks.__file__)).parent.glob("*.py")} - EXTRA
    assert files == {one.name.replace(".", "_") for one in TASK_TYPES}
    assert len(TASK_TYPES) == len(files) == 19


def test_ours_keep_the_rules_of_all() -> None:
    for one in TASK_TYPES:
        engine = one.name.startswith("flow.")
        assert (one.run is None) == engine
        assert engine or fault_of(one) is None
        assert one.description.endswith(".")
        for field in (*one.inputs, *one.outputs):
            assert field.description.endswith(".")
            assert not (field.required and field.default is not None)
        for name in (name for group in one.one_of for name in group):
            field = next(field for field in one.inputs if field.name == name)
            assert not field.required


def test_the_inputs_of_the_seeds_are_there() -> None:
    expected = {
        "web.download": ({"url"}, {"html", "html_content", "status", "final_url"}),
        "web.extract_text": ({"html", "html_content"}, {"text"}),
        "openai.text.summarize": ({"text", "model", "parameters"}, {"summary"}),
        "openai.audio.tts": ({"text", "voice", "model"}, {"audio"}),
        "flow.foreach": ({"items", "task", "concurrency"}, {"results", "count"}),
        "flow.subworkflow": ({"workflow_id", "version", "input"}, {"output", "execution_id"}),
        "flow.delay": ({"seconds"}, set()),
        "flow.wait_event": ({"name", "timeout", "message"}, {"data"}),
    }
    types = find_all()
    for name, (inputs, outputs) in expected.items():
        assert inputs <= {field.name for field in types[name].inputs}
        assert outputs <= {field.name for field in types[name].outputs}


async def _run(context: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs


GOOD = TaskType("a.b", "A", "A.", (Field("x", "text"),), (Field("x", "text"),), _run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "A.b"}, "family.action"), ({"name": "single"}, "family.action"), ({"name": "a..b"}, "family.action"),
        ({"name": "a.b\n"}, "family.action"), ({"name": None}, "family.action"), ({"name": "a." + "b" * 200}, "family.action"),
        ({"name": "flow.mine"}, "of the engine alone"), ({"run": None}, "nothing to run"),
        ({"inputs": (Field("x", "text"), Field("x", "text"))}, "two fields"), ({"inputs": ("x",)}, "not fields"),
        ({"outputs": (Field("x y", "text"),)}, "proper name"), ({"outputs": (Field("x", "blob"),)}, "no known type"),  # type: ignore[arg-type]
        ({"one_of": (("x", "z"),)}, "not there"), ({"timeout": 0}, "above zero"), ({"attempts": 0}, "above zero"),
    ],
)  # fmt: skip
def test_types_that_cannot_be_used(changes: dict[str, Any], words: str) -> None:
    assert fault_of(GOOD) is None
    assert words in str(fault_of(replace(GOOD, **changes)))


PLUGIN = """
from stepway.tasks import Field, TaskType

async def run(context, inputs):
    return {"text": inputs["text"][::-1]}

def made(name, run=run):
    return TaskType(name, "Title", "Description.", (Field("text", "text"),), (Field("text", "text"),), run)

reverse = made("acme.reverse")
several = [made("acme.one"), made("acme.two"), made("no_family"), "not a type", made("acme.none", None)]
thief = made("web.download")
respelled = made("web.extracttext")
"""
POINTS = """[stepway.tasks]
a_reverse = acme_tasks:reverse
b_several = acme_tasks:several
c_thief = acme_tasks:thief
d_respelled = acme_tasks:respelled
e_missing = acme_tasks:no_such_thing
f_broken = acme_broken:anything
g_twice = acme_tasks:reverse
"""
ASK = """
import asyncio, json, structlog
logged = []
structlog.configure(processors=[lambda logger, method, event: logged.append(event) or (_ for _ in ()).throw(structlog.DropEvent)])
from services.flow.tasks.registry import TASK_TYPES, find_all
found = find_all()
text = asyncio.run(found["acme.reverse"].run(None, {"text": "abc"}))["text"]
ours = all(found[one.name] is one for one in TASK_TYPES)
print(json.dumps({"more": sorted(set(found) - {one.name for one in TASK_TYPES}), "ours": ours, "text": text, "logged": logged}))
"""


def test_a_package_adds_types_by_its_entry_points(tmp_path: Path) -> None:
    (tmp_path / "acme_tasks.py").write_text(PLUGIN)
    (tmp_path / "acme_broken.py").write_text("raise SystemExit('goodbye')")
    info = tmp_path / "acme_tasks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tasks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    done = subprocess.run(
        [sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["more"] == ["acme.one", "acme.reverse", "acme.two"]
    assert found["ours"]
    assert found["text"] == "cba"
    left_out = Counter((event["entry_point"], event["package"]) for event in found["logged"])
    once = ("c_thief", "d_respelled", "e_missing", "f_broken", "g_twice")
    assert left_out == Counter({("b_several", "acme-tasks"): 3, **{(name, "acme-tasks"): 1 for name in once}})
    reasons = {event["entry_point"]: event["reason"] for event in found["logged"]}
    assert reasons["c_thief"] == reasons["d_respelled"] == reasons["g_twice"] == "there is another type of this name"
    assert "SystemExit: goodbye" in reasons["f_broken"]
