"""`web.extract_text`: what a reader reads of a page."""

from collections.abc import Mapping
from typing import Any

from services.flow.parsing.computed import computed
from services.flow.parsing.messages import Page, PageText
from stepway.tasks import Context, Field, TaskError, TaskType

MAX_CHARACTERS = 16 * 1024**2
SECONDS = 45.0
_TARGET = "services.flow.parsing.html:extract"


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    html = inputs.get("html")
    if html is None:
        html = inputs["html_content"]
    if len(html) > MAX_CHARACTERS:
        raise TaskError("too_large", f"The page has more than {MAX_CHARACTERS} characters.")
    page = Page(html=html, url=inputs.get("url"), include_links=bool(inputs.get("include_links")))
    return (await computed(_TARGET, page, PageText, work="Reading the page", seconds=SECONDS)).model_dump()


TASK_TYPE = TaskType(
    name="web.extract_text",
    title="Extract the text of a page",
    description="Finds the main text of a page, without menus and advertisements. A page without text fails the task.",
    inputs=(
        Field("html", "text", "The page.", required=False, example="<html>…</html>"),
        Field("html_content", "text", "The same; one of the two is given.", required=False),
        Field("url", "text", "The page's address, by which its links are completed.", required=False),
        Field("include_links", "boolean", "Keep links, as [text](address).", required=False, default=False),
    ),
    outputs=(
        Field("text", "text", "The main text."),
        Field("title", "text", "The page's title, or empty."),
    ),
    run=run,
    one_of=(("html", "html_content"),),
)
