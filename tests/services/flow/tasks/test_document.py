"""The page of task types is what the specifications say."""

from pathlib import Path

from services.flow.tasks.document import document
from services.flow.tasks.registry import TASK_TYPES
from stepway.tasks import Field, TaskType

PAGE = Path(__file__).parents[4] / "docs" / "flow-task-types.md"


def test_the_page_is_made_from_the_specifications() -> None:
    assert PAGE.read_text() == document(), "run python -m services.flow.tasks.document > docs/flow-task-types.md"


def test_every_type_and_field_has_a_row() -> None:
    sections = document().split("\n## ")[1:]
    assert [section.partition("\n")[0] for section in sections] == [one.name for one in TASK_TYPES]
    for one, section in zip(TASK_TYPES, sections, strict=True):
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert [row.split("`")[1] for row in rows] == [field.name for field in (*one.inputs, *one.outputs)]


def test_cells_stay_in_their_table() -> None:
    fields = (Field("x", "text", "a | b\nc", choices=("d|e",), default="f|g", required=False, secret=True),)
    page = document([TaskType("a.b", "T", "D.", fields, ())])
    assert "| `x` | text | no | `f\\|g` | a \\| b c One of `d\\|e`. Never shown. |" in page
