"""PDFs, made here: sound ones, and the ways in which they are not."""

import io
import zlib
from typing import Any

import pytest
from pypdf import PdfReader, PdfWriter

from tests.services.flow.world import World


def pdf(*pages: str, catalog: bytes = b"", compress: bytes | None = None) -> bytes:
    """A small PDF with one line of text per page; `compress`: in place of the pages' content, deflated."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * number) for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, text in enumerate(pages):
        shown = text.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
        content = b"BT /F1 12 Tf 72 720 Td (%s) Tj ET" % shown
        packed = b""
        if compress is not None:
            content, packed = zlib.compress(compress, 9), b" /Filter /FlateDecode"
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R"
            b" /Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * number)
        )
        objects.append(b"<< /Length %d%s >>\nstream\n%s\nendstream" % (len(content), packed, content))
    out = bytearray(b"%PDF-1.4\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return bytes(out + b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))


def encrypted(password: str) -> bytes:
    writer = PdfWriter()
    writer.append(PdfReader(io.BytesIO(pdf("Secret text"))))
    writer.encrypt(password, "the owner's", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


async def kept(world: World, content: bytes) -> dict[str, Any]:
    return await world.context().save("file.pdf", "application/pdf", content)


async def test_the_text_of_all_pages(world: World) -> None:
    file = await kept(world, pdf("First (page)", "", "Größe: 20 €"))
    done = await world.run("pdf.extract_text", file=file)
    assert done == {"text": "First (page)\n\n\n\nGröße: 20 €", "pages": 3}


async def test_encryption_against_changes_does_not_matter(world: World) -> None:
    done = await world.run("pdf.extract_text", file=await kept(world, encrypted("")))
    assert done == {"text": "Secret text", "pages": 1}
    failed = await world.fails("pdf.extract_text", file=await kept(world, encrypted("pass")))
    assert (failed.code, failed.message) == ("pdf_encrypted", "The PDF is encrypted and opens with its password only.")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"%PDF-1.7", b"<html></html>", bytes(5000), b"%PDF-1.4\n" + bytes(range(256)) * 20,
        pdf("Some text").replace(b"/Pages 2 0 R", b"/Pages 9 0 R"),
        pdf("Some text").replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"),
    ],
)  # fmt: skip
async def test_what_is_no_pdf(world: World, content: bytes) -> None:
    failed = await world.fails("pdf.extract_text", file=await kept(world, content))
    assert failed.code in ("bad_pdf", "no_text")
    assert not failed.retryable


@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
async def test_a_pdf_that_was_cut_short(world: World, part: float) -> None:
    whole = pdf("Some text", "More text")
    failed = await world.fails("pdf.extract_text", file=await kept(world, whole[: int(len(whole) * part)]))
    assert (failed.code, failed.retryable) == ("bad_pdf", False)


async def test_pictures_alone(world: World) -> None:
    failed = await world.fails("pdf.extract_text", file=await kept(world, pdf("", "")))
    assert (failed.code, failed.message) == ("no_text", "The PDF has no text: its pages are pictures, or empty.")


async def test_a_bomb_in_a_pdf(world: World) -> None:
    file = await kept(world, pdf("x", compress=b" " * (100 * 1024**2)))
    assert file["size"] < 200_000
    assert (await world.fails("pdf.extract_text", file=file)).code in ("too_large", "bad_pdf")


async def test_a_pdf_that_takes_too_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.flow.tasks.pdf_extract_text.SECONDS", 1.0)
    file = await kept(world, pdf("x", compress=b"BT /F1 12 Tf (word) Tj ET\n" * 500_000))
    failed = await world.fails("pdf.extract_text", file=file)
    assert (failed.code, failed.message) == (
        "too_complex",
        "Reading the PDF took longer than 1 seconds and was stopped.",
    )


async def test_a_file_that_is_too_large(world: World) -> None:
    failed = await world.fails("pdf.extract_text", file=await kept(world, bytes(64 * 1024**2 + 1)))
    assert failed.message == "The file file.pdf is larger than 64 MiB, which is the limit."
