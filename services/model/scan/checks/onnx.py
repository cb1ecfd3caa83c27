"""ONNX: files outside of the model's folder that it would read, and operators that need code from elsewhere.

Field numbers are those of onnx.proto.
"""

from services.model.scan.checks.names import fault_of_path
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind
from services.model.scan.protobuf import Message

NAME = "onnx"
KINDS = frozenset((Kind.ONNX,))

_KNOWN_DOMAINS = frozenset(
    ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft",
     "com.microsoft.nchwc", "com.microsoft.experimental", "org.pytorch.aten")
)  # fmt: skip
_CODE_OPERATORS = frozenset(("PyOp", "PythonOp", "PythonOpGrad", "ATen"))
_MAX_DEPTH = 32


def look(item: Item, findings: Findings) -> None:
    graphs = 0
    own: set[str] = set()
    nodes: set[tuple[str, str]] = set()
    for number, value in Message.of(item).fields():
        if not isinstance(value, Message):
            continue
        if number == 7:
            graphs += 1
            _graph(item, findings, value, nodes, 0)
        elif number == 25:
            own |= _function(item, findings, value, nodes)
    if not graphs:
        raise Unreadable("it holds no graph, so it is no ONNX model")
    for domain, operator in sorted(nodes):
        if operator in _CODE_OPERATORS:
            _report(item, findings, "high", f"The operator {operator} runs code", "It calls into Python or libtorch.")
        elif domain not in _KNOWN_DOMAINS and domain not in own:
            _report(
                item, findings, "medium", f"The operators of {domain} are not ONNX's own",
                "They need a library of their own, which is code that comes from elsewhere.",
            )  # fmt: skip


def _report(item: Item, findings: Findings, severity: str, title: str, description: str) -> None:
    findings.issue(item, NAME, "high" if severity == "high" else "medium", title, description)


def _graph(item: Item, findings: Findings, graph: Message, nodes: set[tuple[str, str]], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise Unreadable("its graphs are nested too deeply")
    for number, value in graph.fields():
        if not isinstance(value, Message):
            continue
        if number == 1:
            _node(item, findings, value, nodes, depth)
        elif number == 5:
            _tensor(item, findings, value)
        elif number == 15:
            for part in (1, 2):
                for tensor in value.messages(part):
                    _tensor(item, findings, tensor)


def _function(item: Item, findings: Findings, function: Message, nodes: set[tuple[str, str]]) -> set[str]:
    """The domain in which a function of the model stands."""
    domains: set[str] = set()
    for number, value in function.fields():
        if isinstance(value, Message) and number == 7:
            _node(item, findings, value, nodes, 0)
        elif isinstance(value, Message) and number == 10:
            domains.add(value.text())
    return domains


def _node(item: Item, findings: Findings, node: Message, nodes: set[tuple[str, str]], depth: int) -> None:
    operator = domain = ""
    for number, value in node.fields():
        if not isinstance(value, Message):
            continue
        if number == 4:
            operator = value.text()
        elif number == 7:
            domain = value.text()
        elif number == 5:
            _attribute(item, findings, value, nodes, depth)
    nodes.add((domain, operator))


def _attribute(item: Item, findings: Findings, attribute: Message, nodes: set[tuple[str, str]], depth: int) -> None:
    for number, value in attribute.fields():
        if not isinstance(value, Message):
            continue
        if number in (5, 10):
            _tensor(item, findings, value)
        elif number in (6, 11):
            _graph(item, findings, value, nodes, depth + 1)


def _tensor(item: Item, findings: Findings, tensor: Message) -> None:
    for entry in tensor.messages(13):
        key = "".join(part.text() for part in entry.messages(1))
        place = "".join(part.text() for part in entry.messages(2))
        if key == "location" and (fault := fault_of_path(place)):
            _report(item, findings, "high", "A tensor is read from outside of the model", f"The path {place} {fault}.")
