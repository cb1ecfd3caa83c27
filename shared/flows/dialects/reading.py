"""A body to the flow that it describes. Knows no dialect: the words of one are given (`words`).

Members are renamed and references made canonical; the models of `definition` judge single members, and what they say is
told in our sentences. What cannot be understood leaves a fault and is taken as not given, so that the rest is read too.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shared.flows import plain
from shared.flows.definition import ALIASES, Flow, FlowInput, FlowOutput, Part, Retry, Task, body_value, type_names
from shared.flows.dialects.words import INPUT, OUTPUT, RETRY, Words
from shared.flows.faults import Faults, FlowFaults, member, shown
from shared.flows.plain import Json
from shared.flows.references import CANONICAL, translate
from shared.flows.task_types import same_name
from stepway.tasks import VALUE_TYPES

P = TypeVar("P", bound=Part)

# What stands for a required member that could not be read. `validation` takes an empty name or type as told already.
BLANK: dict[str, Any] = {"name": "", "attempts": 1, "value": None, "tasks": []}


def read_flow(body: dict[str, Any], words: Words) -> Flow:
    """The flow that a body describes, in the dialect of these words. Raises `FlowFaults`."""
    if fault := plain.problem(body):
        raise FlowFaults([fault])
    reader = Reader(words)
    flow = reader.flow(body)
    reader.faults.raise_any()
    return flow


class Reader:
    """Reads one body. Afterwards `faults` says what was wrong with it."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.faults = Faults()
        self.closed: set[str] = set()  # what is of another form altogether, and told so

    def flow(self, body: Json) -> Flow:
        data = self._members(body, "", self.words.head) or {}
        data["inputs"] = [self._field(FlowInput, INPUT, *one) for one in self._items(data, "inputs", self.words.head)]
        data["tasks"] = [self._task(*one) for one in self._items(data, "tasks", self.words.head)]
        data["outputs"] = [
            self._field(FlowOutput, OUTPUT, *one) for one in self._items(data, "outputs", self.words.head)
        ]
        return self._build(Flow, data, "", self.words.head)

    def _field(self, model: type[P], names: tuple[str, ...], value: Json, path: str) -> P:
        words = {name: name for name in names}
        data = self._members(value, path, words) or {}
        if type(written := data.get("type")) is str:
            data["type"] = ALIASES.get(written.lower(), written.lower())
            data["spelled"] = written if written != data["type"] else ""
        if "value" in data:
            data["value"] = self._canonical(data["value"], member(path, "value"))
        return self._build(model, data, path, words, {"type": "any"})

    def _task(self, value: Json, path: str) -> Task:
        data = self._task_members(value, path, self.words.task)
        return self._build(Task, data, path, self.words.task, {"type": ""})

    def _body(self, value: Json, path: str) -> dict[str, Any] | None:
        """What is done for every item of a loop, in the form in which it is kept."""
        data = self._task_members(value, path, self.words.body)
        task = self._build(Task, {**data, "name": "body"}, path, self.words.body, {"type": ""})
        return body_value(task)

    def _task_members(self, value: Json, path: str, words: Mapping[str, str]) -> dict[str, Any]:
        data = self._members(value, path, words) or {}
        if type(data.get("type")) is str:
            data["type"], data["spelled"] = type_names(data["type"])
        at_inputs = member(path, self.words.input)
        if "inputs" in data:
            looping = same_name(str(data.get("type")), "flow.foreach")
            data["inputs"] = self._inputs(data["inputs"], at_inputs, looping)
        for name in ("condition", "fallback"):
            if name in data:
                data[name] = self._canonical(data[name], member(path, name))
        if data.get("retry") is not None:
            retry = {name: name for name in RETRY}
            given = self._members(data["retry"], member(path, "retry"), retry)
            data["retry"] = None if given is None else self._build(Retry, given, member(path, "retry"), retry)
        return data

    def _inputs(self, given: Json, path: str, looping: bool) -> Json:
        if type(given) is list and self.words.named_lists:
            given = self._named(given, path)
        if type(given) is not dict:
            return given
        body = given.get("task") if looping else None
        if type(body) is not dict:
            return self._canonical(given, path)
        rest = self._canonical({name: one for name, one in given.items() if name != "task"}, path)
        return {**rest, "task": self._body(body, member(path, "task"))}

    def _named(self, given: list[Json], path: str) -> dict[str, Json]:
        """A list of `{name, value}` as an object."""
        inputs: dict[str, Json] = {}
        for index, one in enumerate(given):
            at = f"{path}[{index}]"
            data = self._members(one, at, {"name": "name", "value": "value"}) or {}
            name = data.get("name")
            if type(one) is not dict:
                continue
            if type(name) is not str or "value" not in data:
                self.faults.add(at, "missing", "Give each input a `name` (a text) and a `value`.")
            elif name in inputs:
                self.faults.add(at, "duplicate_name", f"The input `{shown(name)}` is given twice; keep one.")
            else:
                inputs[name] = data["value"]
        return inputs

    def _canonical(self, value: Json, path: str) -> Json:
        return translate(value, self.words.notation, CANONICAL, path, self.faults)

    def _members(self, value: Json, path: str, words: Mapping[str, str]) -> dict[str, Any] | None:
        """The members of an object under our names; None for what is no object."""
        if type(value) is not dict:
            self.closed.add(path)
            self.faults.add(path, "wrong_type", f"This must be an object with {_listed(words)}.")
            return None
        for name in value:
            if name not in words:
                hint = self.faults.nearest(name, words)
                message = f"There is no member `{shown(name)}` here.{hint or f' Known are {_listed(words)}.'}"
                self.faults.add(member(path, name), "unknown_member", message)
        return {ours: value[word] for word, ours in words.items() if word in value}

    def _items(self, data: dict[str, Any], name: str, words: Mapping[str, str]) -> Iterator[tuple[Json, str]]:
        path = _word(words, name)
        items = data.get(name, [])
        if type(items) is not list:
            self.closed.add(path)
            self.faults.add(path, "wrong_type", "This must be a list of objects.")
            return
        field = Flow.model_fields[name]
        most = next(limit.max_length for limit in field.metadata if hasattr(limit, "max_length"))
        if len(items) > most:
            self.faults.add(path, "too_many", f"There may be at most {most} {path}; {len(items)} are given.")
        yield from ((one, f"{path}[{index}]") for index, one in enumerate(items[:most]))

    def _build(
        self, model: type[P], data: dict[str, Any], path: str, words: Mapping[str, str], blank: Mapping[str, Any] = {}
    ) -> P:
        """The part, or what could be understood of it."""
        try:
            return model(**data)
        except ValidationError as error:
            wrong = error.errors(include_url=False)
        for one in wrong:
            self._tell(one, path, words)
        bad = {one["loc"][0] for one in wrong}
        fit = {name: value for name, value in data.items() if name not in bad}
        required = {name for name, field in model.model_fields.items() if field.is_required()}
        missing = {name: {**BLANK, **blank}.get(name) for name in required}
        return cast(P, model.model_construct(**{**missing, **fit}))

    def _tell(self, error: ErrorDetails, path: str, words: Mapping[str, str]) -> None:
        name, *below = error["loc"]
        word = "type" if name == "spelled" else _word(words, str(name))
        where = member(path, word)
        for step in below:
            where = f"{where}[{step}]" if isinstance(step, int) else member(where, str(step))
        if path not in self.closed and where not in self.closed:
            self.faults.add(where, *_sentence(error, word))


def _word(words: Mapping[str, str], name: str) -> str:
    return next((word for word, ours in words.items() if ours == name), name)


def _listed(words: Collection[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


TYPES = {
    "string_type": "a text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "list_type": "a list",
    "dict_type": "an object",
}
BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
}


def _sentence(error: ErrorDetails, word: str) -> tuple[str, str]:
    """The code of a fault that a model has found, and what to do about it."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing" or (kind == "too_short" and word == "tasks"):
        what = "at least one task" if word == "tasks" else f"`{word}`"
        return "missing", f"Give {what}."
    if kind in TYPES:
        return "wrong_type", f"`{word}` must be {TYPES[kind]}."
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return "not_allowed", f"`{word}` must be {words} {context[key]:.15g}."
    if kind == "literal_error":
        known = (
            ", ".join(VALUE_TYPES) + " (string is text)"
            if word == "type"
            else str(context["expected"]).replace("'", "")
        )
        return "not_allowed", f"`{word}` must be one of {known}."
    if kind == "string_pattern_mismatch":
        return "not_allowed", "A name begins with a letter or `_` and goes on with letters, digits, `_` and `-`."
    if kind == "string_too_long":
        return "too_long", f"`{word}` must have at most {context['max_length']} characters."
    if kind == "string_too_short":
        return "missing", f"`{word}` must not be empty."
    if kind == "too_long":
        return "too_many", f"`{word}` must have at most {context['max_length']} items."
    return "not_allowed", f"`{word}` cannot be taken: {error['msg']}."
