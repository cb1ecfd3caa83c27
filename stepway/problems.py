"""What can go wrong between a client and a Stepway server. `client` raises these; the command line shows them."""

from typing import Any

import httpx


class ApiError(Exception):
    """The server has refused a request. `code` is stable; `errors` lists every fault as `{param, code, message, step}`.

    `body` is the whole problem document, with further members such as the `workflow` of a refused trigger.
    """

    def __init__(
        self, status: int, code: str, detail: str, *, body: dict[str, Any] | None = None, base: str = ""
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.body = body or {}
        self._base = base

    @property
    def title(self) -> str:
        return str(self.body.get("title") or "")

    @property
    def errors(self) -> list[dict[str, Any]]:
        found = self.body.get("errors")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    @property
    def retryable(self) -> bool:
        return bool(self.body.get("retryable", self.status in (429, 503)))

    @property
    def help_url(self) -> str | None:
        """Where the code and its remedy are explained; None when the answer was not the server's own."""
        kind = self.body.get("type")
        if not isinstance(kind, str) or kind == "about:blank":
            return None
        return self._base + kind if kind.startswith("/") else kind


class Unreachable(Exception):
    """No answer: the server is not there, or took too long. The message is one sentence for a person."""


def error_of(response: httpx.Response, base: str) -> ApiError:
    """The refusal in a response whose body has been read: problem+json, OpenAI's error object, or anything else."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("code"), str):
        detail = str(body.get("detail") or body.get("title") or body["code"])
        return ApiError(response.status_code, body["code"], detail, body=body, base=base)
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return openai_error(response.status_code, body["error"])
    reason = f"The server answered {response.status_code} {response.reason_phrase}".strip() + "."
    return ApiError(response.status_code, f"http_{response.status_code}", reason)


def openai_error(status: int, error: dict[str, Any]) -> ApiError:
    """The refusal in OpenAI's `{"error": {message, type, param, code}}`."""
    message = str(error.get("message") or "The endpoint gave no reason.")
    return ApiError(status, str(error.get("code") or error.get("type") or "error"), message)
