"""YAML: tags that build Python objects."""

import yaml

from services.model.scan import limits
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "yaml_tags"
KINDS = frozenset((Kind.YAML,))

_STANDARD = "tag:yaml.org,2002:"
_MAX_ALIASES = 10_000
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def look(item: Item, findings: Findings) -> None:
    text = item.whole(limits.MAX_TEXT)
    aliases = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            aliases += isinstance(event, yaml.AliasEvent)
            _tag(item, findings, getattr(event, "tag", None))
    except (yaml.YAMLError, ValueError, RecursionError):
        if b"!!python/" in text or b"!<tag:yaml.org,2002:python/" in text:
            _tag(item, findings, _STANDARD + "python/")
        raise Unreadable("it is not YAML") from None
    if aliases > _MAX_ALIASES:
        findings.issue(item, NAME, "medium", "Very many aliases", "They may grow without end when they are read.")


def _tag(item: Item, findings: Findings, tag: str | None) -> None:
    if not tag:
        return
    if tag.startswith(_STANDARD + "python/") or tag.startswith("!python"):
        findings.issue(
            item, NAME, "critical", "A tag builds a Python object",
            f"The tag {tag.removeprefix(_STANDARD)} runs code where YAML is not loaded safely.",
        )  # fmt: skip
    elif not tag.startswith(_STANDARD) and tag != "!":
        findings.issue(item, NAME, "low", "A tag is not of YAML's own", f"The tag {tag} means something to its reader.")
