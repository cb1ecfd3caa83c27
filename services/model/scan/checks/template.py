"""Jinja templates in files of their own (chat_template.jinja). template_rules judges them."""

from services.model.scan import limits
from services.model.scan.checks import template_rules
from services.model.scan.findings import Findings
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "template"
KINDS = frozenset((Kind.TEMPLATE,))


def look(item: Item, findings: Findings) -> None:
    template_rules.judge(item, findings, item.whole(limits.MAX_TEXT).decode("utf-8", "replace"), item.basename)
