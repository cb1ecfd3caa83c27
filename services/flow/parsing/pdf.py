"""The text of a PDF, by pypdf. Runs in a child process."""

import logging
from collections.abc import Callable

from pypdf import PdfReader
from pypdf.errors import LimitReachedError, PyPdfError

from services.flow.parsing.messages import MAX_PAGES, MAX_TEXT, Document, DocumentText
from services.flow.texts import clean
from shared.jobs.outcomes import Permanent


def extract(document: Document, progress: Callable[[float | None, str], None]) -> DocumentText:
    """Raises Permanent: `bad_pdf`, `pdf_encrypted`, `too_large`, `no_text`."""
    logging.disable()  # it tells much about damaged files
    try:
        found = _extract(document.path)
    except (Permanent, MemoryError):
        raise
    except LimitReachedError as error:
        raise Permanent("too_large", f"The PDF is larger than what is read: {_words(error)}") from None
    except PyPdfError as error:
        raise Permanent("bad_pdf", f"The file is not a PDF that can be read: {_words(error)}") from None
    except Exception as error:  # the library fails in many ways at files that are damaged
        raise Permanent("bad_pdf", f"The PDF is damaged ({type(error).__name__}).") from None
    if not found.text.strip():
        raise Permanent("no_text", "The PDF has no text: its pages are pictures, or empty.")
    return found


def _extract(path: str) -> DocumentText:
    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):  # many are encrypted only against changes
        raise Permanent("pdf_encrypted", "The PDF is encrypted and opens with its password only.")
    count = len(reader.pages)
    if count > MAX_PAGES:
        raise Permanent("too_large", f"The PDF has {count} pages; {MAX_PAGES} are read at most.")
    texts, size = [], 0
    for page in reader.pages:
        texts.append(clean(page.extract_text()).strip())
        size += len(texts[-1])
        if size > MAX_TEXT:
            raise Permanent("too_large", f"The PDF has more than {MAX_TEXT} characters of text.")
    return DocumentText(text="\n\n".join(texts).strip(), pages=count)


def _words(error: Exception) -> str:
    return clean(str(error))[:200].rstrip(".") + "."
