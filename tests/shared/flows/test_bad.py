"""Bad definitions and bad inputs: each with the path, the code and the words that its author is told, and nothing else."""

from typing import Any

import pytest

from shared.flows import faults
from shared.flows.faults import FlowFaults
from shared.flows.validation import accept, check_inputs
from tests.shared.flows.kinds import BASE, GONE, TASKS_BASE, TYPES, edited

Case = tuple[str, dict[str, Any], str, str, str]

FIRST = "tasks.0."


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def nested(levels: int) -> Any:
    condition: Any = True
    for _ in range(levels):
        condition = {"not": condition}
    return condition


# What stands in the base is replaced, and exactly one fault is expected: its path, its code, a part of its sentence.
HEAD: list[Case] = [
    ("no name", {"name": GONE}, "name", "missing", "Give `name`"),
    ("empty name", {"name": ""}, "name", "missing", "must not be empty"),
    ("name is a number", {"name": 3}, "name", "wrong_type", "must be a text"),
    ("long name", {"name": "x" * 201}, "name", "too_long", "at most 200 characters"),
    ("long description", {"description": "x" * 4001}, "description", "too_long", "at most 4000"),
    ("unknown member", {"descripton": "x"}, "descripton", "unknown_member", "Did you mean `description`?"),
    ("unlike any member", {"%%": 1}, '["%%"]', "unknown_member", "Known are `name`, `description`"),
    ("execution", {"execution": "random"}, "execution", "not_allowed", "one of sequential or parallel"),
    ("tasks are no list", {"tasks": {}, "output": []}, "tasks", "wrong_type", "must be a list"),
    ("no tasks", {"tasks": [], "output": []}, "tasks", "missing", "at least one task"),
    ("tasks left out", {"tasks": GONE, "output": []}, "tasks", "missing", "at least one task"),
    ("a task is a text", {"tasks.4": "x"}, "tasks[4]", "wrong_type", "must be an object with `ref`, `type`"),
    ("NUL", {"description": "a\x00b"}, "description", "not_allowed", "NUL"),
    ("lone surrogate", {"description": "\ud800"}, "description", "not_allowed", "surrogate"),
    ("infinite", {"tasks.0.input.url": float("inf")}, "tasks[0].input.url", "not_allowed", "finite"),
    ("huge number", {"tasks.0.input.url": 1 << 2000}, "tasks[0].input.url", "not_allowed", "out of range"),
    ("not JSON", {"tasks.0.input.url": {1, 2}}, "tasks[0].input.url", "wrong_type", "no JSON value"),
    ("name of a member", {"tasks.0.input.headers": {1: 2}}, "tasks[0].input.headers", "wrong_type", "must be texts"),
    ("large", {"description": "x" * (1 << 20)}, "", "too_long", "1 MiB"),
]
INPUTS: list[Case] = [
    ("input of an unknown type", {"input.0.type": "date"}, "input[0].type", "not_allowed", "text, number, boolean"),
    ("input without type", {"input.3.type": GONE}, "input[3].type", "missing", "Give `type`"),
    ("input is a text", {"input.4": "url"}, "input[4]", "wrong_type", "must be an object with `name`"),
    ("bad name of an input", {"input.4": {"name": "a b", "type": "text"}}, "input[4].name", "not_allowed", "letters"),
    ("name begins with a digit", {"input.4": {"name": "1a", "type": "text"}}, "input[4].name", "not_allowed", "begins"),
    ("line end in a name", {"input.4": {"name": "a\n", "type": "text"}}, "input[4].name", "not_allowed", "letters"),
    ("long name of an input", {"input.4": {"name": "a" * 65, "type": "text"}}, "input[4].name", "too_long", "64"),
    ("input twice", {"input.4": {"name": "url", "type": "text"}}, "input[4].name", "duplicate_name", "`url` is used"),
    ("default of another type", {"input.1.default": "5"}, "input[1].default", "wrong_type", "type, number"),
    ("required is a text", {"input.0.required": "yes"}, "input[0].required", "wrong_type", "true or false"),
    ("unknown member of an input", {"input.0.typ": "x"}, "input[0].typ", "unknown_member", "Did you mean `type`?"),
    ("too many inputs", {"input": [BASE["input"][0]] + [{"name": f"i{n}", "type": "text"} for n in range(100)]},
     "input", "too_many", "at most 100 input; 101"),
]  # fmt: skip
TASKS: list[Case] = [
    ("task without ref", {"tasks.3.ref": GONE}, "tasks[3].ref", "missing", "Give `ref`"),
    ("bad ref", {"tasks.3.ref": "a.b"}, "tasks[3].ref", "not_allowed", "begins with a letter"),
    ("ref twice", {"tasks.3.ref": "size"}, "tasks[3].ref", "duplicate_name", "`size` is used before"),
    ("no type", {"tasks.3.type": GONE, "tasks.3.input": {}}, "tasks[3].type", "missing", "Give `type`"),
    ("empty type", {"tasks.3.type": "", "tasks.3.input": {}}, "tasks[3].type", "missing", "must not be empty"),
    ("type is a list", {"tasks.2.type": ["text.size"]}, "tasks[2].type", "wrong_type", "must be a text"),
    ("long type", {"tasks.2.type": "text.size" + " " * 200}, "tasks[2].type", "too_long", "at most 128"),
    ("unknown type", {"tasks.2.type": "text.sise"}, "tasks[2].type", "unknown_type", "Did you mean `text.size`?"),
    ("unlike any type", {"tasks.2.type": "zzz"}, "tasks[2].type", "unknown_type", "GET /task-types"),
    ("unknown member of a task", {"tasks.0.retries": 3}, "tasks[0].retries", "unknown_member", "Did you mean `retry`?"),
    ("input is a list", {"tasks.3.input": []}, "tasks[3].input", "wrong_type", "must be an object"),
    ("no attempts", {"tasks.0.retry": {}}, "tasks[0].retry.attempts", "missing", "Give `attempts`"),
    ("0 attempts", {"tasks.0.retry": {"attempts": 0}}, "tasks[0].retry.attempts", "not_allowed", "at least 1"),
    ("21 attempts", {"tasks.0.retry": {"attempts": 21}}, "tasks[0].retry.attempts", "not_allowed", "at most 20"),
    ("half an attempt", {"tasks.0.retry": {"attempts": 1.5}}, "tasks[0].retry.attempts", "wrong_type", "whole number"),
    ("attempts are true", {"tasks.0.retry": {"attempts": True}}, "tasks[0].retry.attempts", "wrong_type", "whole"),
    ("retry is a number", {"tasks.0.retry": 3}, "tasks[0].retry", "wrong_type", "object with `attempts`"),
    ("unknown member of retry", {"tasks.0.retry": {"attempts": 2, "delays": 1}},
     "tasks[0].retry.delays", "unknown_member", "Did you mean `delay`?"),
    ("negative delay", {"tasks.0.retry": {"attempts": 2, "delay": -1}},
     "tasks[0].retry.delay", "not_allowed", "at least 0"),
    ("small multiplier", {"tasks.0.retry": {"attempts": 2, "multiplier": 0.5}},
     "tasks[0].retry.multiplier", "not_allowed", "at least 1"),
    ("large jitter", {"tasks.0.retry": {"attempts": 2, "jitter": 2}},
     "tasks[0].retry.jitter", "not_allowed", "at most 1"),
    ("no time", {"tasks.0.timeout": 0}, "tasks[0].timeout", "not_allowed", "more than 0"),
    ("too much time", {"tasks.0.timeout": 1e9}, "tasks[0].timeout", "not_allowed", "at most 2592000"),
    ("timeout is a text", {"tasks.0.timeout": "5s"}, "tasks[0].timeout", "wrong_type", "must be a number"),
    ("on_error", {"tasks.0.on_error": "ignore"}, "tasks[0].on_error", "not_allowed", "fail, continue or default"),
    ("default without fallback", {"tasks.0.on_error": "default"}, "tasks[0].fallback", "missing", "Give `fallback`"),
    ("fallback without default", {"tasks.0.fallback": {"html": ""}},
     "tasks[0].fallback", "not_allowed", 'with `on_error` "default" only'),
    ("fallback of no output", {"tasks.0.on_error": "default", "tasks.0.fallback": {"body": ""}},
     "tasks[0].fallback.body", "unknown_reference", "web.download has no output `body`"),
    ("fallback of another type", {"tasks.0.on_error": "default", "tasks.0.fallback": {"status": "200"}},
     "tasks[0].fallback.status", "wrong_type", "must be a number"),
    ("fallback is a text", {"tasks.0.on_error": "fail", "tasks.0.fallback": "x"},
     "tasks[0].fallback", "wrong_type", "must be an object"),
    ("depends on nothing", {"tasks.1.depends_on": ["downlod"]},
     "tasks[1].depends_on[0]", "unknown_reference", "Did you mean `download`?"),
    ("depends on itself", {"tasks.1.depends_on": ["extract"]}, "tasks[1].depends_on[0]", "cycle", "its own task"),
    ("depends on a later one", {"tasks.1.depends_on": ["size"]},
     "tasks[1].depends_on[0]", "forward_reference", "runs after this one"),
    ("depends on a number", {"tasks.1.depends_on": [3]}, "tasks[1].depends_on[0]", "wrong_type", "a text"),
    ("listed output that is none", {"tasks.2.output": [{"name": "charactrs"}]},
     "tasks[2].output[0]", "unknown_reference", "Did you mean `characters`?"),
    ("listed output of another type", {"tasks.2.output": {"empty": "text"}},
     "tasks[2].output.empty", "type_mismatch", "is of type boolean"),
    ("listed outputs are a text", {"tasks.2.output": "empty"}, "tasks[2].output", "wrong_type", "List outputs as"),
]  # fmt: skip
VALUES: list[Case] = [
    ("missing input", {"tasks.0.input": {}}, "tasks[0].input.url", "missing", "Give `url` (text): The page's address."),
    ("null for a required input", {"tasks.0.input.url": None}, "tasks[0].input.url", "missing", "Give `url`"),
    ("unknown input", {"tasks.0.input.hedders": {}},
     "tasks[0].input.hedders", "unknown_input", "Did you mean `headers`?"),
    ("none of a group", {"tasks.1.input": {}}, "tasks[1].input", "one_of", "exactly one of `html`, `html_content`; none"),
    ("two of a group", {"tasks.1.input.html_content": "x"}, "tasks[1].input", "one_of", "`html` and `html_content`"),
    ("number for a text", {"tasks.0.input.url": 3}, "tasks[0].input.url", "wrong_type", "must be a text"),
    ("list for an object", {"tasks.0.input.headers": []}, "tasks[0].input.headers", "wrong_type", "an object"),
    ("true for a number", {"tasks.3.input.concurrency": True},
     "tasks[3].input.concurrency", "wrong_type", "must be a number"),
    ("not a choice", {"tasks.4": {"ref": "t", "type": "openai.audio.tts", "input": {"text": "x", "voice": "bass"}}},
     "tasks[4].input.voice", "not_allowed", "one of alloy, echo"),
    ("text for a file", {"tasks.4": {"ref": "t", "type": "openai.audio.transcription", "input": {"file": "a.wav"}}},
     "tasks[4].input.file", "wrong_type", "`artifact_id`"),
    ("number into a text", {"tasks.0.input.url": "{{input.most}}"},
     "tasks[0].input.url", "type_mismatch", '"value: {{input.most}}"'),
    ("file into a text", {"tasks.0.input.url": "{{input.sound}}"},
     "tasks[0].input.url", "type_mismatch", "`{{input.sound}}` is a file, and a text is wanted here."),
    ("text into a file",
     {"tasks.4": {"ref": "t", "type": "openai.audio.transcription", "input": {"file": "{{input.url}}"}}},
     "tasks[4].input.file", "type_mismatch", "a file is wanted"),
    ("text into a list", {"tasks.3.input.items": "{{refs.extract.output.text}}"},
     "tasks[3].input.items", "type_mismatch", "a list is wanted"),
    ("rendered text into a number", {"tasks.3.input.concurrency": "{{input.most}} "},
     "tasks[3].input.concurrency", "type_mismatch", "one reference and nothing else"),
    ("output of another type", {"output.0.value": "{{refs.size.output.characters}}"},
     "output[0].value", "type_mismatch", "is a number"),
    ("literal output of another type", {"output.0.value": 3}, "output[0].value", "wrong_type", "must be a text"),
    ("output without value", {"output.0.value": GONE}, "output[0].value", "missing", "Give `value`"),
    ("output twice", {"output.1": BASE["output"][0]}, "output[1].name", "duplicate_name", "`text`"),
    ("too deep", {"tasks.3.input.items": deep(17)}, "tasks[3].input.items" + "[0]" * 16, "too_deep", "20 levels"),
]  # fmt: skip
REFERENCES: list[Case] = [
    ("unknown input of the flow", {"tasks.0.input.url": "{{input.ulr}}"},
     "tasks[0].input.url", "unknown_reference", "Did you mean `url`?"),
    ("unknown task", {"tasks.1.input.html": "{{refs.donwload.output.html}}"},
     "tasks[1].input.html", "unknown_reference", "Did you mean `download`?"),
    ("unknown output", {"tasks.1.input.html": "{{refs.download.output.htm}}"},
     "tasks[1].input.html", "unknown_reference", "Did you mean `html`?"),
    ("below a text", {"tasks.1.input.html": "{{refs.download.output.html.body}}"},
     "tasks[1].input.html", "unknown_reference", "a text has no members"),
    ("below a file", {"tasks.0.input.url": "{{input.sound.path}}"},
     "tasks[0].input.url", "unknown_reference", "a file has artifact_id, name"),
    ("name in a list", {"output.0.value": "{{refs.loop.output.results.first}}"},
     "output[0].value", "unknown_reference", "has items 0, 1, 2"),
    ("later task", {"tasks.1.input.html": "x {{refs.size.output.characters}}"},
     "tasks[1].input.html", "forward_reference", "list it before, or set `execution` to parallel"),
    ("itself", {"tasks.1.input.html": "{{refs.extract.output.text}}"},
     "tasks[1].input.html", "cycle", "wait for itself"),
    ("circle", {"execution": "parallel", "tasks.0.depends_on": ["size"]},
     "tasks[0]", "cycle", "download → size → extract → download"),
    ("not closed", {"tasks.0.input.url": "{{input.url"}, "tasks[0].input.url", "bad_reference", "no `}}`"),
    ("empty braces", {"tasks.0.input.url": "{{}}"}, "tasks[0].input.url", "bad_reference", "write `\\{{`"),
    ("expression", {"tasks.0.input.url": "{{input.url | upper}}"},
     "tasks[0].input.url", "bad_reference", "References are `{{input.NAME}}`"),
    ("call", {"tasks.0.input.url": "{{input.__class__()}}"}, "tasks[0].input.url", "bad_reference", "not a reference"),
    ("brackets", {"tasks.0.input.url": "{{input['url']}}"}, "tasks[0].input.url", "bad_reference", "not a reference"),
    ("dunder", {"tasks.0.input.url": "{{input.__class__}}"},
     "tasks[0].input.url", "unknown_reference", "no input `__class__`"),
    ("another dialect's", {"tasks.0.input.url": "{{inputs.url}}"},
     "tasks[0].input.url", "bad_reference", "`{{inputs.url}}` is not a reference"),
    ("in a name", {"tasks.0.input.headers": {"{{input.url}}": 1}},
     'tasks[0].input.headers["{{input.url}}"]', "bad_reference", "not into names"),
    ("item outside of a loop", {"tasks.0.input.url": "{{item}}"},
     "tasks[0].input.url", "bad_reference", "only inside of the `task`"),
    ("index beside a loop's task", {"tasks.3.input.concurrency": "{{index}}"},
     "tasks[3].input.concurrency", "bad_reference", "only inside"),
    ("output in a task", {"tasks.0.input.url": "{{output.text}}"},
     "tasks[0].input.url", "bad_reference", "in outputs of the flow only"),
    ("output of itself", {"output.0.value": "{{output.text}}"},
     "output[0].value", "unknown_reference", "no output that stands before `text`"),
    ("backslashes that leave it open", {"tasks.0.input.url": "\\\\{{x}}"},
     "tasks[0].input.url", "bad_reference", "`{{x}}`"),
    ("endless name", {"tasks.0.input.url": "{{input." + "a" * 600 + "}}"},
     "tasks[0].input.url", "bad_reference", "no `}}`"),
]  # fmt: skip
LOOPS: list[Case] = [
    ("body is a reference", {"tasks.3.input.task": "{{input.settings}}"},
     "tasks[3].input.task", "wrong_type", "an object with `type` and `input`"),
    ("body without type", {"tasks.3.input.task": {"input": {}}}, "tasks[3].input.task.type", "missing", "Give `type`"),
    ("body with a name", {"tasks.3.input.task.ref": "x"}, "tasks[3].input.task.ref", "unknown_member", "Known are"),
    ("body of an unknown type", {"tasks.3.input.task": {"type": "text.nope"}},
     "tasks[3].input.task.type", "unknown_type", "`text.nope`"),
    ("loop in a loop", {"tasks.3.input.task": {"type": "Flow.ForEach", "input": {}}},
     "tasks[3].input.task.type", "not_allowed", "flow.subworkflow"),
    ("input missing in the body", {"tasks.3.input.task.input.text": GONE},
     "tasks[3].input.task.input.text", "missing", "Give `text`"),
    ("mismatch in the body", {"tasks.3.input.task.input.text": "{{index}}"},
     "tasks[3].input.task.input.text", "type_mismatch", "is a number"),
    ("forward in the body", {"tasks.3.input.task.input.text": "{{refs.after.output.text}}",
      "tasks.4": {"ref": "after", "type": "web.extract_text", "input": {"html": "x"}}},
     "tasks[3].input.task.input.text", "forward_reference", "runs after"),
    ("retry in the body", {"tasks.3.input.task.retry": {"attempts": 99}},
     "tasks[3].input.task.retry.attempts", "not_allowed", "at most 20"),
]  # fmt: skip
CONDITIONS: list[tuple[str, Any, str, str, str]] = [
    ("number", 1, "", "bad_condition", "A condition is true, false"),
    ("list", [True], "", "bad_condition", "A condition is"),
    ("text", "true", "", "bad_condition", "not one whole reference"),
    ("half a reference", "{{refs.size.output.empty}} ", "", "bad_condition", "not one whole reference"),
    ("reference to a text", "{{input.url}}", "", "type_mismatch", "a boolean is wanted"),
    ("unknown form", {"if": True}, "", "bad_condition", "`left`, `op` and `right`"),
    ("two forms", {"all": [True], "any": [True]}, "", "bad_condition", "one of `all`, `any`, `not`"),
    ("unknown op", {"left": 1, "op": "==", "right": 1}, ".op", "bad_condition", "eq, ne, lt"),
    ("op is a list", {"left": 1, "op": ["eq"], "right": 1}, ".op", "bad_condition", "must be one of"),
    ("no right", {"left": 1, "op": "eq"}, "", "bad_condition", "Give `right`"),
    ("exists with right", {"left": "{{input.url}}", "op": "exists", "right": 1}, ".right", "bad_condition", "no `right`"),
    ("exists of a literal", {"left": "x", "op": "exists"}, ".left", "bad_condition", "one whole reference"),
    ("all of nothing", {"all": []}, ".all", "bad_condition", "1 to 100 conditions"),
    ("all is no list", {"all": True}, ".all", "bad_condition", "takes a list"),
    ("too many", {"any": [True] * 101}, ".any", "bad_condition", "1 to 100"),
    ("not null", {"not": None}, ".not", "bad_condition", "A condition is"),
    ("deep", nested(9), ".not" * 8, "too_deep", "8 deep"),
    ("unknown task below", {"any": [False, {"not": "{{refs.x.output.y}}"}]},
     ".any[1].not", "unknown_reference", "names no task"),
    ("unknown input below", {"left": ["{{input.nope}}"], "op": "eq", "right": 1},
     ".left[0]", "unknown_reference", "no input `nope`"),
    ("order of a boolean", {"left": "{{refs.size.output.empty}}", "op": "lt", "right": 1},
     ".left", "type_mismatch", "compares numbers or texts"),
    ("later task", "{{refs.loop.output.results.0}}", "", "forward_reference", "runs after"),
    ("bad braces", "{{x}}", "", "bad_reference", "not a reference"),
]  # fmt: skip
IN_TASKS: list[Case] = [
    ("no title", {"title": GONE}, "title", "missing", "Give `title`"),
    ("no name", {"tasks.1.name": GONE}, "tasks[1].name", "missing", "Give `name`"),
    ("name twice", {"tasks.1.name": "speak", "tasks.1.inputs.0.value": {"artifact_id": "1"}},
     "tasks[1].name", "duplicate_name", "`speak`"),
    ("reference of refs", {"tasks.0.inputs.text": "{{input.text}}"},
     "tasks[0].inputs.text", "bad_reference", "References are `{{inputs.NAME}}` and `{{tasks.TASK.outputs.NAME}}`"),
    ("unknown task", {"outputs.0.value": "{{tasks.speek.outputs.audio}}"},
     "outputs[0].value", "unknown_reference", "`{{tasks.speek.outputs.audio}}` names no task"),
    ("unknown input", {"tasks.0.inputs.tone": "x"}, "tasks[0].inputs.tone", "unknown_input", "no input `tone`"),
    ("listed input without name", {"tasks.1.inputs.1": {"value": 1}}, "tasks[1].inputs[1]", "missing", "a `name`"),
    ("listed input twice", {"tasks.1.inputs.1": {"name": "file", "value": 1}},
     "tasks[1].inputs[1]", "duplicate_name", "given twice"),
    ("listed input is a text", {"tasks.1.inputs.1": "x"}, "tasks[1].inputs[1]", "wrong_type", "an object with `name`"),
    ("mismatch in a listed input", {"tasks.1.inputs.0.value": "{{inputs.text}}"},
     "tasks[1].inputs.file", "type_mismatch", "`{{inputs.text}}` is a text"),
]  # fmt: skip

BODIES: list[tuple[str, Any, str, str, str]] = [
    ("list", [], "", "wrong_type", "must be a JSON object"),
    ("null", None, "", "wrong_type", "must be a JSON object"),
    ("text", "flow", "", "wrong_type", "must be a JSON object"),
    ("empty", {}, "", "no_dialect", "Write a flow with `name`"),
    ("no marks", {"tasks": [{"type": "text.size"}], "description": "x"}, "", "no_dialect", "dialect tasks"),
    ("heads of both", {"name": "x", "title": "x", "tasks": []}, "title", "mixed_dialects", "`name` belongs to"),
    ("inputs of both", {"input": [], "inputs": [], "tasks": []}, "inputs", "mixed_dialects", "the dialect refs"),
    ("task of the other", {"title": "x", "tasks": [{"ref": "a", "type": "text.size"}]},
     "title", "mixed_dialects", "`tasks[0].ref` belongs to the dialect refs"),
    ("tasks of both", {"tasks": [{"ref": "a"}, {"name": "b"}]}, "tasks[1].name", "mixed_dialects", "dialect tasks"),
]  # fmt: skip

DEFINITIONS = [
    *((f"{group}: {name}", edited(edits), *rest)
      for group, cases in (("head", HEAD), ("input", INPUTS), ("task", TASKS), ("value", VALUES),
                           ("reference", REFERENCES), ("loop", LOOPS))
      for name, edits, *rest in cases),
    *((f"condition: {name}", edited({"tasks.3.condition" if "later" not in name else "tasks.1.condition": condition}),
       f"tasks[{1 if 'later' in name else 3}].condition{path}", *rest) for name, condition, path, *rest in CONDITIONS),
    *((f"tasks: {name}", edited(edits, TASKS_BASE), *rest) for name, edits, *rest in IN_TASKS),
    *((f"body: {name}", body, *rest) for name, body, *rest in BODIES),
]  # fmt: skip

GIVEN: list[tuple[str, Any, str, str, str]] = [
    ("nothing", {}, "input.url", "missing", "Give `url` (text)"),
    ("none at all", None, "input.url", "missing", "Give `url` (text)"),
    ("null", {"url": None}, "input.url", "missing", "Give `url` (text)"),
    ("list", [], "input", "wrong_type", "must be an object"),
    ("text", "x", "input", "wrong_type", "must be an object"),
    ("number for a text", {"url": 3}, "input.url", "wrong_type", "must be of type text"),
    ("text for a number", {"url": "x", "most": "3"}, "input.most", "wrong_type", "must be of type number"),
    ("boolean for a number", {"url": "x", "most": True}, "input.most", "wrong_type", "must be of type number"),
    ("text for a file", {"url": "x", "sound": "a.wav"}, "input.sound", "wrong_type", "an object with `artifact_id`"),
    ("file without id", {"url": "x", "sound": {"name": "a"}}, "input.sound", "wrong_type", "artifact_id"),
    ("list for an object", {"url": "x", "settings": []}, "input.settings", "wrong_type", "type object"),
    ("unknown", {"url": "x", "mots": 3}, "input.mots", "unknown_input", "Did you mean `most`?"),
    ("odd name", {"url": "x", "a b": 3}, 'input["a b"]', "unknown_input", "no input `a b`"),
    ("deep", {"url": "x", "settings": {"a": deep(30)}}, "input.settings.a" + "[0]" * 18, "too_deep", "20 levels"),
    ("large", {"url": "x" * (1 << 20)}, "input", "too_long", "1 MiB"),
    ("NUL", {"url": "\x00"}, "input.url", "not_allowed", "NUL"),
    ("not finite", {"url": "x", "most": float("nan")}, "input.most", "not_allowed", "finite"),
    ("not JSON", {"url": b"x"}, "input.url", "wrong_type", "no JSON value"),
]


@pytest.mark.parametrize(
    ("body", "path", "code", "part"), [case[1:] for case in DEFINITIONS], ids=[case[0] for case in DEFINITIONS]
)
def test_a_bad_definition_is_refused_with_the_one_thing_that_is_wrong(
    body: Any, path: str, code: str, part: str
) -> None:
    with pytest.raises(FlowFaults) as refused:
        accept(body, TYPES)
    assert [(one.path, one.code) for one in refused.value.faults] == [(path, code)], refused.value.faults
    assert part in refused.value.faults[0].message


@pytest.mark.parametrize(
    ("given", "path", "code", "part"), [case[1:] for case in GIVEN], ids=[case[0] for case in GIVEN]
)
@pytest.mark.parametrize("dialect", ["refs", "tasks"])
def test_bad_inputs_of_an_execution_are_refused(given: Any, path: str, code: str, part: str, dialect: Any) -> None:
    _, flow = accept(BASE, TYPES)
    with pytest.raises(FlowFaults) as refused:
        check_inputs(flow, given, dialect)
    if dialect == "tasks":
        path = path.replace("input", "inputs", 1)
    assert [(one.path, one.code) for one in refused.value.faults] == [(path, code)], refused.value.faults
    assert part in refused.value.faults[0].message


def test_the_bases_are_good() -> None:
    assert accept(BASE, TYPES)[0] == "refs"
    assert accept(TASKS_BASE, TYPES)[0] == "tasks"


def test_every_code_is_documented_and_shown_here() -> None:
    shown = {case[3] for case in (*DEFINITIONS, *GIVEN)}
    assert shown == set(faults.CODES)


def test_all_faults_of_form_and_of_meaning_are_in_one_answer() -> None:
    body = edited(
        {
            "nmae": 1,
            "tasks.0.retry": {"attempts": 99},
            "tasks.0.timeout": "x",
            "tasks.1.type": "web.extrakt_text",
            "tasks.2.input.text": "{{refs.nobody.output.text}}",
            "tasks.3.input.items": "{{oops}}",
            "output.0.type": "txt",
        }
    )
    with pytest.raises(FlowFaults) as refused:
        accept(body, TYPES)
    assert {(one.path, one.code) for one in refused.value.faults} == {
        ("nmae", "unknown_member"),
        ("tasks[0].retry.attempts", "not_allowed"),
        ("tasks[0].timeout", "wrong_type"),
        ("tasks[1].type", "unknown_type"),
        ("tasks[2].input.text", "unknown_reference"),
        ("tasks[3].input.items", "bad_reference"),
        ("output[0].type", "not_allowed"),
    }


def test_the_number_of_faults_in_an_answer_is_bounded() -> None:
    body = {"name": "x", "tasks": [{"ref": f"t{n}", "type": "nothing", "input": {}, "zz": 1} for n in range(1000)]}
    with pytest.raises(FlowFaults) as refused:
        accept(body, TYPES)
    assert len(refused.value.faults) == faults.MAX_FAULTS + 1
    assert refused.value.faults[-1].code == "too_many"


def test_too_many_tasks_are_told_first() -> None:
    body = {"name": "x", "tasks": [{"zz": 1}] * 1001}
    with pytest.raises(FlowFaults) as refused:
        accept(body, TYPES)
    assert refused.value.faults[0].code == "too_many"
    assert refused.value.faults[0].path == "tasks"
