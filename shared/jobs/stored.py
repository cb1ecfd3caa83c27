"""Values as PostgreSQL can hold them: it takes neither NUL characters nor the numbers NaN and infinity in JSON."""

from typing import Any

from pydantic_core import from_json, to_json

MAX_TEXT = 2000


def json_text(value: Any) -> str:
    """JSON for a `jsonb` column. NUL becomes U+FFFD; NaN and infinity become strings, which pydantic reads back."""
    text = to_json(value, inf_nan_mode="strings").decode()
    return to_json(_without_nul(from_json(text))).decode() if "\\u0000" in text else text


def short_text(text: str) -> str:
    """Text for a person: what a step says, bounded in length."""
    text = text.replace("\0", "\ufffd")
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(one) for one in value]
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(one) for key, one in value.items()}
    return value
