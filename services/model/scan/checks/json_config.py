"""JSON of any model: settings that load code, chat templates, Keras' Lambda layers, types that skops must not trust."""

import json
from collections.abc import Iterator

from services.model.scan import limits
from services.model.scan.checks import template_rules
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind
from services.model.scan.pickles.names import judge

NAME = "json_config"
KINDS = frozenset((Kind.JSON,))

_CODE_KEYS = ("auto_map", "custom_pipelines", "custom_code")
_CODE_MODULES = ("builtins", "os", "subprocess", "sys", "posix", "nt", "importlib", "runpy", "pickle", "shutil", "pty")


def look(item: Item, findings: Findings) -> None:
    documents = _documents(item)
    if item.basename == "schema.json":
        for document in documents:
            _skops(item, findings, document)
    for document in documents:
        for owner in _objects(document):
            _object(item, findings, owner)


def _documents(item: Item) -> list[object]:
    try:
        text = item.whole(limits.MAX_TEXT).decode("utf-8-sig")
        if item.extension == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return [json.loads(text)] if text.strip() else []
    except RecursionError:
        raise Unreadable("its JSON is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"it is not JSON: {error}") from None


def _objects(document: object) -> Iterator[dict[str, object]]:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(part for part in value.values() if isinstance(part, dict | list))
        elif isinstance(value, list):
            waiting.extend(part for part in value if isinstance(part, dict | list))


def _object(item: Item, findings: Findings, owner: dict[str, object]) -> None:
    for key in _CODE_KEYS:
        if owner.get(key) and isinstance(owner[key], dict | list | str | bool):
            findings.issue(
                item, NAME, "high", f"The setting {key} loads code",
                "The model's own Python code would run; it is only safe where its code is reviewed.",
            )  # fmt: skip
    if owner.get("trust_remote_code") not in (None, False, "", 0):
        findings.issue(
            item, NAME, "high", "The setting trust_remote_code is on", "It asks to run the model's own code."
        )
    for key, value in owner.items():
        if "chat_template" in key:
            for text in _texts(value):
                template_rules.judge(item, findings, text, key)
    _keras(item, findings, owner)


def _texts(value: object) -> list[str]:
    """A template is a text, or a list of `{name, template}`, or texts by name."""
    if isinstance(value, str):
        return [value]
    parts = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    return [part for part in parts if isinstance(part, str)] + [
        part["template"] for part in parts if isinstance(part, dict) and isinstance(part.get("template"), str)
    ]


def _keras(item: Item, findings: Findings, owner: dict[str, object]) -> None:
    name, module = owner.get("class_name"), owner.get("module")
    if not isinstance(name, str) or ("config" not in owner and "module" not in owner):
        return
    if name.rpartition(">")[2] in ("Lambda", "__lambda__"):
        findings.issue(
            item, NAME, "critical", "The model has a Lambda layer",
            "It holds Python code that runs when the model is loaded.",
        )  # fmt: skip
    if isinstance(module, str) and module.partition(".")[0] in _CODE_MODULES and module != "builtins":
        _names_code(item, findings, f"{module}.{name}")
    if (
        module == "builtins"
        and isinstance(owner.get("config"), str)
        and judge("builtins", str(owner["config"])) == "dangerous"
    ):
        _names_code(item, findings, f"builtins.{owner['config']}")
    if isinstance(module, str) and module.partition(".")[0] not in ("keras", "builtins", "tensorflow", "tf_keras"):
        findings.issue(
            item, NAME, "medium", f"A layer comes from {module}", "Its code is not Keras' own; review where it is from."
        )  # fmt: skip


def _names_code(item: Item, findings: Findings, path: str) -> None:
    findings.issue(item, NAME, "critical", f"A layer names {path}", "Keras imports it by its name, and may call it.")


def _skops(item: Item, findings: Findings, document: object) -> None:
    """Skops builds objects of the types that its schema names."""
    for owner in _objects(document):
        module, name = owner.get("__module__"), owner.get("__class__")
        if not isinstance(module, str) or not isinstance(name, str):
            continue
        content = owner.get("content")
        if owner.get("__loader__") in ("FunctionNode", "TypeNode", "OperatorFuncNode") and isinstance(content, dict):
            module, name = str(content.get("module_path", module)), str(content.get("function", name))
        verdict = judge(module, name)
        if verdict != "harmless" and owner.get("__loader__") not in ("JsonNode",):
            findings.issue(
                item, NAME, "critical" if verdict == "dangerous" else "medium", f"The schema names {module}.{name}",
                "Skops must not be told to trust it without a review.",
            )  # fmt: skip
