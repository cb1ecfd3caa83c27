"""The icons: every one is there, is what its design draws, and nothing but an icon is ever given out."""

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.app import icons
from services.app.icons import draw
from services.app.icons.designs import DESIGNS
from services.app.models.catalogue import cloud_models, providers

FOLDER = Path(icons.__file__).parent


def decoded(file: bytes) -> list[bytes]:
    """The pixels of a PNG as `draw` writes it: by the format's own rules, not by the writer's code."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        kind, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        assert struct.unpack(">I", file[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (width, height, rest) == (draw.SIZE, draw.SIZE, [8, 6, 0, 0, 0])
    body, stride = zlib.decompress(chunks[b"IDAT"]), width * 4 + 1
    rows, above = [], bytes(width * 4)
    for start in range(0, len(body), stride):
        assert body[start] == 2
        above = bytes((a + b) & 0xFF for a, b in zip(body[start + 1 : start + stride], above, strict=True))
        rows.append(above)
    return rows


def test_has_the_icon_of_the_wire() -> None:
    file = icons.resolve("icons/providers/openai.png")
    assert file == FOLDER / "providers" / "openai.png"


def test_every_provider_and_model_has_its_icon() -> None:
    for seed in [*(provider.icon for provider in providers()), *(model.icon for model in cloud_models())]:
        assert icons.resolve(seed) is not None, seed
    names = {provider.icon: provider.name for provider in providers()}
    assert {icon.path: icon.name for icon in icons.index() if icon.category == "providers"} == names


def test_the_general_set_is_large_enough() -> None:
    categories = [icon.category for icon in icons.index()]
    assert categories.count("models") + categories.count("clusters") >= 12
    assert set(categories) == {"providers", "models", "clusters"}


def test_index_and_files_agree() -> None:
    listed = {icon.file for icon in icons.index()}
    assert listed == set(FOLDER.rglob("*.png"))
    assert all(icons.resolve(icon.path) == icon.file for icon in icons.index())
    assert all(file.stat().st_size < 8192 for file in listed)


def test_no_two_icons_look_alike() -> None:
    pictures = [icon.file.read_bytes() for icon in icons.index()]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("category", sorted(DESIGNS))
def test_the_files_are_what_the_designs_draw(category: str) -> None:
    for stem, design in DESIGNS[category].items():
        file = (FOLDER / category / f"{stem}.png").read_bytes()
        assert decoded(file) == draw.render(design), f"{category}/{stem}: run python -m services.app.icons.draw"


def test_a_picture_has_clear_corners_and_white_ink() -> None:
    rows = draw.render(DESIGNS["providers"]["openai"])
    assert rows[0][3] == rows[-1][-1] == 0
    middle = rows[draw.SIZE // 2]
    assert middle[: draw.SIZE * 4 : 4].count(255) >= 3
    assert middle[draw.SIZE * 2 + 3] == 255


@pytest.mark.parametrize(
    "path",
    [
        "",
        "icons",
        "icons/",
        "icons/providers",
        "icons/providers/",
        "icons/providers/openai",
        "icons/providers/OpenAI.png",
        "icons/providers/../providers/openai.png",
        "icons/providers/../../__init__.py",
        "icons//providers/openai.png",
        "/icons/providers/openai.png",
        "icons/providers/openai.png\x00",
        "icons/providers/openai.png/",
        "icons\\providers\\openai.png",
        "icons/providers/%2e%2e/openai.png",
        "../../../../etc/passwd",
        "/etc/passwd",
        "icons/designs.py",
    ],
)
def test_nothing_else_is_given_out(path: str) -> None:
    assert icons.resolve(path) is None


@given(st.text(alphabet="iconsprvde/.\\%2e~\x00", max_size=60))
def test_no_made_up_path_leads_anywhere(path: str) -> None:
    assert icons.resolve(path) is None
