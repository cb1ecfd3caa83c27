"""Source code and notebooks beside the weights. They run only where someone lets them: to be reviewed."""

from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "script"
KINDS = frozenset((Kind.SCRIPT, Kind.NOTEBOOK))


def look(item: Item, findings: Findings) -> None:
    findings.issue(
        item, NAME, "medium", "The model brings code of its own",
        "It runs when the model is loaded with trust_remote_code, as TorchScript, or by hand; review it.",
    )  # fmt: skip
