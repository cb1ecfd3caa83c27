"""`pdf.extract_text`: the text of a PDF."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.flow.parsing.computed import computed
from services.flow.parsing.messages import Document, DocumentText
from shared.objects.blocking import settled
from stepway.tasks import Context, Field, TaskType

MAX_BYTES = 64 * 1024**2
SECONDS = 120.0
_TARGET = "services.flow.parsing.pdf:extract"


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    content = await context.read(inputs["file"], MAX_BYTES)
    with tempfile.TemporaryDirectory(prefix="stepway-pdf-") as folder:
        path = Path(folder, "file.pdf")
        await settled(path.write_bytes, content)
        del content
        document = Document(path=str(path))
        found = await computed(_TARGET, document, DocumentText, work="Reading the PDF", seconds=SECONDS)
    return found.model_dump()


TASK_TYPE = TaskType(
    name="pdf.extract_text",
    title="Extract the text of a PDF",
    description=(
        f"Reads the text of a PDF of up to {MAX_BYTES >> 20} MiB. One that needs a password, is damaged or has pictures only "
        "fails the task."
    ),
    inputs=(Field("file", "file", "The PDF."),),
    outputs=(
        Field("text", "text", "The text, with an empty line between pages."),
        Field("pages", "number", "How many pages there are.", example=3),
    ),
    run=run,
    timeout=180.0,
)
