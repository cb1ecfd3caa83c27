"""The icons that the platform brings along: an index of them, and the file of one.

The pictures are our own: monograms and plain pictograms, nobody's trademark. `designs` says how each looks, `draw`
makes the files, which are committed beside this one. The API carries paths such as `icons/providers/openai.png`.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services.app.icons.designs import DESIGNS

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Icon:
    """One icon. `path` is its id on the wire; `category` is providers, models or clusters; `file` a PNG of 96 by 96."""

    path: str
    name: str
    category: str
    file: Path


def index() -> list[Icon]:
    """Every icon, by category and then in the order of `designs`."""
    return list(_known().values())


def resolve(path: str) -> Path | None:
    """The file of an icon's path; None for any other text, as only paths of the index are looked up."""
    icon = _known().get(path)
    return icon.file if icon else None


@cache
def _known() -> dict[str, Icon]:
    icons = [
        Icon(f"icons/{category}/{stem}.png", design.name, category, _FOLDER / category / f"{stem}.png")
        for category, designs in DESIGNS.items()
        for stem, design in designs.items()
    ]
    return {icon.path: icon for icon in icons}
