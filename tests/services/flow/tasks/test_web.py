"""Pages as the web has them: every encoding, declared rightly, wrongly and not at all; and what is no page."""

import time
from typing import Any

import pytest

from services.flow.texts import clean, decoded, encoding_of
from tests.services.flow.world import World
from tests.serving import Fault, FileServer, send

GERMAN = "Grüße aus Köln, 20 € für zwölf Brötchen"
JAPANESE = "日本語のページです。これは試験です。"
RUSSIAN = "Привет, мир: страница на русском языке"


def page(text: str, encoding: str, meta: str = "") -> bytes:
    return f"<html><head>{meta}<title>t</title></head><body><p>{text}</p></body></html>".encode(encoding)


def serve(web: FileServer, body: bytes, content_type: str | None = "text/html") -> str:
    def route(request: Any, fault: object) -> None:
        send(request, 200, body, {"Content-Type": content_type} if content_type is not None else {})

    return web.route("/page", route)


META = '<meta charset="{}">'
OLD_META = '<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset={}">'


@pytest.mark.parametrize(
    ("text", "encoding", "content_type", "meta"),
    [
        (GERMAN, "utf-8", "text/html; charset=utf-8", ""),
        (GERMAN, "utf-8", "text/html", ""),
        (GERMAN, "utf-8-sig", "text/html; charset=iso-8859-1", ""),
        (GERMAN, "utf-8", "text/html; charset=iso-8859-1", ""),  # declared wrongly
        (GERMAN, "utf-8", "text/html", META.format("windows-1252")),  # likewise
        (GERMAN, "cp1252", "text/html; charset=iso-8859-1", ""),  # as browsers read it
        (GERMAN, "cp1252", "text/html; charset=utf-8", ""),  # declared wrongly
        (GERMAN, "cp1252", "text/html", ""),
        (GERMAN, "cp1252", 'text/html; charset="no-such"', META.format("latin1")),
        (GERMAN, "iso8859-15", "text/html", OLD_META.format("ISO-8859-15")),
        (GERMAN, "utf-16", "text/html", ""),
        (GERMAN, "utf-16-le", "text/html; charset=UTF-16", ""),
        (GERMAN, "utf-8", "text/html", META.format("utf-16")),  # cannot be: it was read as ASCII
        (GERMAN, "utf-8", "text/html; charset=zlib_codec", ""),
        (JAPANESE, "shift_jis", "text/html; charset=Shift_JIS", ""),
        (JAPANESE, "euc_jp", "text/html", META.format("euc-jp")),
        (JAPANESE, "iso2022_jp", "text/html; charset=iso-2022-jp", ""),
        ("简体中文网页测试", "gb18030", "text/html; charset=gb2312", ""),
        ("한국어 페이지 시험", "cp949", "text/html; charset=euc-kr", ""),
        ("繁體中文網頁測試", "big5", "text/html", META.format("big5")),
        (RUSSIAN, "koi8-r", "text/html; charset=koi8-r", ""),
        (RUSSIAN, "cp1251", "text/html", META.format("windows-1251")),
        (GERMAN, "utf-8", None, ""),
    ],
)
async def test_every_encoding_is_read(
    world: World, web: FileServer, text: str, encoding: str, content_type: str | None, meta: str
) -> None:
    done = await world.run("web.download", url=serve(web, page(text, encoding, meta), content_type))
    assert f"<p>{text}</p>" in done["html"]
    assert done["html"] == done["html_content"]
    assert done["status"] == 200


def test_a_broken_byte_does_not_spoil_the_rest() -> None:
    assert decoded(GERMAN.encode() + b"\xff", "text/html; charset=utf-8") == GERMAN + "\ufffd"
    assert decoded(GERMAN.encode() + b"\xff") == GERMAN + "\ufffd"
    assert decoded(JAPANESE.encode("shift_jis") + b"\x81", "text/html; charset=shift_jis") == JAPANESE + "\ufffd"
    assert decoded(b'<?xml version="1.0" encoding="koi8-r"?>' + RUSSIAN.encode("koi8-r")).endswith(RUSSIAN)
    assert decoded(b"") == ""


@pytest.mark.parametrize(
    "label", ["zlib_codec", "idna", "punycode", "unicode_escape", "rot13", "../x", "a" * 99, "utf-7", "hex"]
)
def test_what_is_no_encoding_of_pages(label: str) -> None:
    assert encoding_of(label) is None


def test_what_a_database_refuses_is_left_out() -> None:
    assert clean("a\0b") == "ab"
    assert clean("a\ud800b") == "a\ufffdb"
    assert clean("🎈") == "🎈"


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"%PDF-1.7", "application/pdf", "is application/pdf, not a page"),
        (b"x", "image/png", "is image/png, not a page"),
        (b"\x89PNG\r\n\x1a\n\0\0", "text/html", "is not text, but a file of another kind"),
        (b"%PDF-1.7 ...", "application/octet-stream", "is not text"),
        (bytes(100), None, "is not text"),
        (b"PK\x03\x04abc", "", "is not text"),
    ],
)
async def test_what_is_no_page(
    world: World, web: FileServer, body: bytes, content_type: str | None, words: str
) -> None:
    failed = await world.fails("web.download", url=serve(web, body, content_type))
    assert (failed.code, failed.retryable) == ("not_text", False)
    assert words in failed.message


@pytest.mark.parametrize(
    ("status", "retryable", "words"),
    [
        (404, False, "The server answered 404 Not Found."),
        (503, True, "503 Service Unavailable"),
        (429, True, "429"),
        (304, False, "304"),
        (599, False, "The server answered 599."),
    ],
)
async def test_other_answers(world: World, web: FileServer, status: int, retryable: bool, words: str) -> None:
    web.fail(Fault("/x", status=status, headers={"Retry-After": "9"}))
    failed = await world.fails("web.download", url=f"{web.url}/x")
    assert (failed.code, failed.retryable, failed.after) == ("http_status", retryable, 9.0)
    assert words in failed.message


async def test_the_limit_is_the_users_within_ours(world: World, web: FileServer) -> None:
    url = serve(web, b"x" * 1000)
    assert len((await world.run("web.download", url=url, max_bytes=1000))["html"]) == 1000
    assert (await world.fails("web.download", url=url, max_bytes=999)).code == "too_large"
    url = serve(web, b"x" * (16 * 1024**2 + 1))
    failed = await world.fails("web.download", url=url)
    assert failed.message == "The answer is larger than 16 MiB, which is the limit."
    for wrong in (0, -1, 10**9):
        assert (await world.fails("web.download", url=url, max_bytes=wrong)).code == "bad_limit"


async def test_headers_are_sent_and_redirects_told(world: World, web: FileServer) -> None:
    serve(web, b"<p>hi</p>")
    done = await world.run(
        "web.download", url=web.redirect("/old", "/page"), headers={"X-Token": "t", "Accept": "text/plain"}
    )
    assert done["final_url"] == f"{web.url}/page"
    assert {seen.headers["x-token"] for seen in web.seen} == {"t"}
    assert web.seen[0].headers["accept"] == "text/plain"


ARTICLE = """<html><head><title>On tides</title></head><body><nav><a href="/">Home</a> <a href="/shop">Shop</a></nav>
<article><h1>On tides</h1><p>The tide rises and falls twice a day, because the moon pulls at the sea and the earth turns below
it. In some bays it rises by more than ten metres, and in others one hardly sees it at all.</p><p>Sailors have kept
<a href="/tables">tables of the tides</a> for centuries, and today a computer predicts them for years to come, to the minute and
to the centimetre, for every harbour of the world.</p></article><footer>Copyright, cookies, newsletter</footer></body></html>"""


@pytest.mark.parametrize("spelled", ["html", "html_content"])
async def test_the_text_of_a_page(world: World, spelled: str) -> None:
    done = await world.run("web.extract_text", **{spelled: ARTICLE})
    assert done["title"] == "On tides"
    assert "pulls at the sea" in done["text"]
    assert "newsletter" not in done["text"]
    assert "](" not in done["text"]


async def test_links_are_kept_and_completed(world: World) -> None:
    done = await world.run("web.extract_text", html=ARTICLE, include_links=True, url="https://tides.example/a/b")
    assert "[tables of the tides](https://tides.example/tables)" in done["text"]


@pytest.mark.parametrize(
    "html", ["", "   ", "<html><body><script>alert(1)</script></body></html>", "<!-- -->", "<div></div>"]
)
async def test_a_page_without_text(world: World, html: str) -> None:
    failed = await world.fails("web.extract_text", html=html)
    assert (failed.code, failed.retryable) == ("no_text", False)


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 200 + "text" + "</div>" * 200, "<p>text<" * 2000, "<p>a\0b text</p>", "text alone", "&#0;&#xd800; text",
        '<?xml version="1.0" encoding="utf-8"?><html><body><p>text</p></body></html>',
    ],
)  # fmt: skip
async def test_odd_markup_is_read_somehow(world: World, html: str) -> None:
    done = await world.run("web.extract_text", html=html)
    assert "text" in done["text"]
    assert done["text"] == clean(done["text"])


async def test_markup_that_is_too_deep_for_any_reader(world: World) -> None:
    failed = await world.fails("web.extract_text", html="<div>" * 50_000 + "text" + "</div>" * 50_000)
    assert failed.code == "no_text"


async def test_markup_that_takes_too_long_blocks_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.flow.tasks.web_extract_text.SECONDS", 0.5)
    html = "<html><body>" + "".join(f"<div><p>{'word ' * 20}<a href='/{n}'>x</a></p>" for n in range(60_000))
    begun = time.monotonic()
    failed = await world.fails("web.extract_text", html=html)
    assert failed.code == "too_complex"
    assert failed.message == "Reading the page took longer than 0.5 seconds and was stopped."
    assert time.monotonic() - begun < 30


async def test_a_page_that_is_too_long(world: World) -> None:
    assert (await world.fails("web.extract_text", html="x" * (16 * 1024**2 + 1))).code == "too_large"
