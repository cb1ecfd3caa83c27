"""Programs and libraries (ELF, PE, Mach-O, Java, WebAssembly, Python bytecode): a model has no use for them."""

from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "executable"
KINDS = frozenset((Kind.EXECUTABLE,))


def look(item: Item, findings: Findings) -> None:
    findings.issue(
        item, NAME, "high", "The file is a program or a library", "A model does not need one; do not let it be run."
    )  # fmt: skip
