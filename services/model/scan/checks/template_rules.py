"""What a chat template may not do. It is parsed, never rendered: dunders, hidden attributes, imports, endless loops.

Used by the checks that find templates: template, json_config, gguf.
"""

import re
from collections.abc import Iterator

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.model.scan import limits
from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.words import words
from shared.contracts.models import Severity

NAME = "template"

_DUNDER = re.compile(r"__[A-Za-z]\w*|\w*[A-Za-z]__\b")
_REACHING = words(
    "mro func_globals func_code gi_frame gi_code f_globals f_builtins f_locals f_back cr_frame cr_code ag_frame tb_frame "
    "tb_next import_module load_module popen builtins subclasses"
)
_RUNNING = frozenset(("system", "eval", "exec", "open", "compile", "getattr", "read_text", "write_text"))
_FIELD = re.compile(r"\{[^{}]*[.\[][^{}]*\}")
_MOST = 1_000_000
_Found = tuple[Severity, str, str]


class _Generation(Extension):
    """The tag {% generation %} of transformers' chat templates."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", _Generation]
)


def judge(item: Item, findings: Findings, text: str, where: str) -> None:
    """Report what is wrong with the template `text`, which stands under `where`."""
    if len(text) > limits.MAX_TEMPLATE:
        findings.error(item, NAME, f"The template {where} is too long to be judged.")
        return
    try:
        tree = _ENVIRONMENT.parse(text)
        for severity, title, description in _faults(tree):
            findings.issue(item, NAME, severity, title, f"{description} (in {where})")
    except (TemplateError, RecursionError) as error:
        if _DUNDER.search(text):
            findings.issue(
                item, NAME, "high", "A broken template has dunder names", f"It cannot be parsed. (in {where})"
            )
        findings.error(item, NAME, f"The template {where} cannot be parsed: {type(error).__name__}.")


def _faults(tree: nodes.Template) -> Iterator[_Found]:
    for node in tree.find_all(nodes.Node):
        yield from _fault(node)


def _fault(node: nodes.Node) -> Iterator[_Found]:
    match node:
        case nodes.Include() | nodes.Import() | nodes.FromImport() | nodes.Extends():
            yield "high", "The template loads another", "include, import and extends read files."
        case nodes.Getattr(attr=name):
            yield from _attribute(name)
        case nodes.Getitem(arg=nodes.Const(value=str(name))):
            yield from _attribute(name)
        case nodes.Getitem(arg=nodes.Filter() | nodes.Call() | nodes.Concat() | nodes.Mod()):
            yield from _computed(node.arg)
        case nodes.Filter(name="attr"):
            yield "high", "The template uses the filter attr", "It reaches attributes by computed names."
        case nodes.Filter(name="format", node=nodes.Const(value=str(text))) if "%c" in text:
            yield "high", "The template makes characters by number", "This hides what it reaches for."
        case nodes.Const(value=str(text)) if _DUNDER.search(text):
            yield "critical", f"The template names {_dunder_in(text)}", "Dunder names lead to the interpreter."
        case nodes.Const(value=str(text)) if text.strip() and not text.strip("_") and len(text) > 1:
            yield "high", "The template has underscores alone in a text", "Dunder names can be put together from it."
        case nodes.Name(name=name) if _DUNDER.fullmatch(name) or name in ("self", "lipsum", "cycler", "joiner"):
            yield "high", f"The template uses {name}", "It leads to the interpreter's own objects."
        case nodes.Call():
            yield from _call(node)
        case nodes.Concat() | nodes.Add() | nodes.Mul() | nodes.Pow() | nodes.Mod():
            yield from _constant(node)


def _dunder_in(text: str) -> str:
    found = _DUNDER.search(text)
    return found.group()[:60] if found else ""


def _attribute(name: str) -> Iterator[_Found]:
    if name.startswith("__") or name in _REACHING:
        yield "critical", f"The template reaches for {name[:60]}", "It leads to the interpreter's own objects."
    elif name.startswith("_"):
        yield "medium", f"The template reaches for {name[:60]}", "Names with an underscore are not for templates."


def _computed(argument: nodes.Expr) -> Iterator[_Found]:
    """An index that is put together from text: `x['ro' ~ 'le']`."""
    if any(isinstance(part.value, str) for part in argument.find_all(nodes.Const)) or isinstance(
        argument, nodes.Concat
    ):
        yield "medium", "The template computes the name of what it reads", "This hides what it reaches for."


def _call(node: nodes.Call) -> Iterator[_Found]:
    match node.node:
        case nodes.Getattr(attr="format" | "format_map", node=nodes.Const(value=str(text))):
            if _FIELD.search(text) or "__" in text:
                yield "critical", "A format string reaches for attributes", "`{0.name}` reads any attribute."
        case nodes.Getattr(attr="format" | "format_map"):
            yield "medium", "A computed text is used as a format string", "`{0.name}` in it reads any attribute."
        case nodes.Getattr(attr=name) if name in _RUNNING:
            yield "high", f"The template calls {name}", "It is how code is run or files are opened."
        case nodes.Name(name="range"):
            for argument in node.args:
                if isinstance(value := _folded(argument), int) and abs(value) > _MOST:
                    yield "medium", "The template counts very far", f"A range of {value} would not end in time."
        case nodes.Name(name=name) if name in _RUNNING or name == "import_module":
            yield "high", f"The template calls {name}", "It is how code is run or files are opened."


def _constant(node: nodes.Expr) -> Iterator[_Found]:
    """What can be computed while parsing: names put together from parts, and huge values."""
    if isinstance(node, nodes.Mul | nodes.Pow):
        values = [part.value for part in node.find_all(nodes.Const) if isinstance(part.value, int)]
        if any(abs(value) > _MOST for value in values) or (isinstance(node, nodes.Pow) and max(values, default=0) > 64):
            yield "medium", "The template computes a huge value", "It would use up memory or time."
        return
    if isinstance(value := _folded(node), str) and _DUNDER.search(value):
        yield "critical", f"The template puts together {_dunder_in(value)}", "Dunder names lead to the interpreter."


def _folded(node: nodes.Expr) -> object:
    if any(True for _ in node.find_all((nodes.Mul, nodes.Pow))):
        return None
    try:
        return node.as_const()
    except nodes.Impossible:
        return None
