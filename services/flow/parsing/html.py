"""The main text of a page, by trafilatura. Runs in a child process."""

from collections.abc import Callable

import trafilatura

from services.flow.parsing.messages import Page, PageText
from services.flow.texts import clean
from shared.jobs.outcomes import Permanent


def extract(page: Page, progress: Callable[[float | None, str], None]) -> PageText:
    """Raises Permanent `no_text`."""
    found = trafilatura.bare_extraction(
        page.html, url=page.url, include_comments=False, include_links=page.include_links, with_metadata=True
    )
    text, title = "", ""
    if found is not None and not isinstance(found, dict):
        text, title = found.text or "", found.title or ""
    text = text.strip() or trafilatura.html2txt(page.html).strip()
    if not text:
        raise Permanent("no_text", "The page has no text: it is empty, or made by scripts alone.")
    return PageText(text=clean(text), title=clean(title))
