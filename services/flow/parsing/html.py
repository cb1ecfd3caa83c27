"""The main text of a page, by trafilatura. Runs in a child process."""

from collections.abc import Callable

import trafilatura

from services.flow.parsing.messages import Page, PageText
from services.flow.texts import clean
from shared.jobs.outcomes import Permanent


def extract(page: Page, progress: Callable[[float | None, str], None]) -> PageText:
    """Raises Permanent `no_text`."""
    source = clean(page.html)
    found = trafilatura.bare_extraction(
        source, url=page.url, include_comments=False, include_links=page.include_links, with_metadata=True
    )
    text, title = "", ""
    if found is not None and not isinstance(found, dict):
        text, title = found.text or "", found.title or ""
    text = text.strip() or _all_text(source)
    if not text:
        raise Permanent("no_text", "The page has no text: it is empty, or made by scripts alone.")
    return PageText(text=clean(text), title=clean(title))


def _all_text(source: str) -> str:
    """For what is hardly a page: everything that is not a script."""
    found = trafilatura.html2txt(source).strip()
    return found or trafilatura.html2txt(f"<html><body><div>{source}</div></body></html>").strip()
