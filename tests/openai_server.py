"""A fake for a paid provider: a small real server that speaks OpenAI's protocol, and is strict about it.

It knows `/v1/models`, `/v1/chat/completions`, `/v1/embeddings`, `/v1/audio/speech` and `/v1/audio/transcriptions`. It has no
model: what it says is made from what it is asked. Tests that need real answers deploy a local model instead.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.serving import Fault, Server, send

KEY = "sk-test-1234567890abcdef"
MODELS = ("gpt-3.5-turbo", "gpt-4o-mini", "text-embedding-3-small", "tts-1", "whisper-1")
VOICES = ("alloy", "echo", "fable", "onyx", "nova", "shimmer")
FORMATS = {"mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav"}
_ROLES = ("system", "developer", "user", "assistant", "tool")
_CHAT = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "tools",
    "response_format", "user",
}  # fmt: skip
# One silent frame of MPEG-1 layer III, 128 kbit/s at 44.1 kHz: 26 ms.
MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]
    body: Any  # parsed JSON, or the parts of a form


@dataclass
class Refusal(Exception):
    """An error in OpenAI's shape."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


def echo(messages: list[dict[str, Any]]) -> str:
    return f"You said: {messages[-1]['content']}"


class OpenAIServer(Server):
    """`asked_for` has what came. `say` makes answers from messages; `limit` answers 429 so many times."""

    def __init__(self, key: str = KEY, say: Callable[[list[dict[str, Any]]], str] = echo) -> None:
        super().__init__()
        self.key = key
        self.say = say
        self.asked_for: list[Asked] = []
        self.raw: bytes | None = None  # answered in place of everything, as a server that is not compatible would
        self._limited: list[str] = []

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def limit(self, times: int, retry_after: str) -> None:
        self._limited += [retry_after] * times

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        raw = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        try:
            kind, body = self._answered(request, raw)
            if self.raw is not None:
                body = self.raw
            send(request, 200, body, {"Content-Type": kind, "x-request-id": "req_fake"})
        except Refusal as refused:
            error = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
            headers = {"Content-Type": "application/json", **refused.headers}
            send(request, refused.status, json.dumps({"error": error}).encode(), headers)

    def _answered(self, request: BaseHTTPRequestHandler, raw: bytes) -> tuple[str, bytes]:
        self._check_key(request.headers.get("Authorization"))
        if self._limited:
            after = self._limited.pop(0)
            raise Refusal(
                429, "Rate limit reached for requests.", "requests", None, "rate_limit_exceeded", {"Retry-After": after}
            )
        path = request.path.partition("?")[0]
        headers = {name.lower(): value for name, value in request.headers.items()}
        if path == "/v1/models" and request.command == "GET":
            return _as_json({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})
        if path == "/v1/audio/transcriptions":
            form = _form(headers.get("content-type", ""), raw)
            self.asked_for.append(Asked(path, headers, form))
            return self._transcription(form)
        routes = {"/v1/chat/completions": self._chat, "/v1/embeddings": _embeddings, "/v1/audio/speech": _speech}
        if path not in routes or request.command != "POST":
            raise Refusal(404, f"Invalid URL ({request.command} {path})")
        body = _json_object(headers.get("content-type", ""), raw)
        self.asked_for.append(Asked(path, headers, body))
        return routes[path](body)

    def _check_key(self, given: str | None) -> None:
        if given is None or not given.startswith("Bearer "):
            raise Refusal(401, "You didn't provide an API key in an Authorization header using Bearer auth.")
        if given != f"Bearer {self.key}":
            # as the real one does, it repeats the key in part, and here, to be nasty, as a whole
            shown = given.removeprefix("Bearer ")
            message = f"Incorrect API key provided: {shown[:8]}****{shown[-4:]} ({shown})."
            raise Refusal(401, message, code="invalid_api_key")

    def _chat(self, body: dict[str, Any]) -> tuple[str, bytes]:
        model = _model(body)
        if unknown := set(body) - _CHAT:
            raise Refusal(400, f"Unrecognized request argument supplied: {sorted(unknown)[0]}")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refusal(400, "Invalid type for 'messages': expected a non-empty array.", param="messages")
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in _ROLES or "content" not in message:
                raise Refusal(400, f"Invalid 'messages[{number}]'.", param=f"messages[{number}]")
        _number(body, "temperature", 0, 2)
        _number(body, "max_tokens", 1, 100_000)
        text = self.say(messages)
        prompt = sum(len(str(message["content"]).split()) for message in messages)
        usage = {"prompt_tokens": prompt, "completion_tokens": len(text.split())}
        return _as_json(
            {
                "id": "chatcmpl-fake",
                "object": "chat.completion",
                "created": 1700000000,
                "model": model,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {**usage, "total_tokens": sum(usage.values()), "prompt_tokens_details": {"cached_tokens": 0}},
            }
        )

    def _transcription(self, form: dict[str, tuple[str | None, bytes]]) -> tuple[str, bytes]:
        _model({name: value.decode() for name, (_, value) in form.items() if name != "file"})
        if "file" not in form or form["file"][0] is None:
            raise Refusal(400, "'file' is a required property", param="file")
        name, content = form["file"]
        language = form.get("language", (None, b"en"))[1].decode()
        return _as_json({"text": f"{len(content)} bytes of {name} in {language}."})


def _embeddings(body: dict[str, Any]) -> tuple[str, bytes]:
    model, given = _model(body), body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise Refusal(400, "'$.input' is invalid.", param="input")
    if body.get("encoding_format", "float") != "float":
        raise Refusal(400, "this server gives floats only", param="encoding_format")
    data = [{"object": "embedding", "index": index, "embedding": vector(text)} for index, text in enumerate(texts)]
    data.reverse()  # the order is not promised
    return _as_json({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 3, "total_tokens": 3}})


def vector(text: str) -> list[float]:
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:8]]


def _speech(body: dict[str, Any]) -> tuple[str, bytes]:
    _model(body)
    text, kind = body.get("input"), body.get("response_format", "mp3")
    if not isinstance(text, str) or not 1 <= len(text) <= 4096:
        raise Refusal(400, "'input' must have 1 to 4096 characters.", param="input")
    if body.get("voice") not in VOICES:
        raise Refusal(400, f"Input should be {', '.join(VOICES)}.", param="voice")
    if kind not in FORMATS:
        raise Refusal(400, "'response_format' is not supported.", param="response_format")
    return FORMATS[kind], MP3_FRAME * len(text)


def _model(body: dict[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "you must provide a model parameter")
    if model not in MODELS:
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise Refusal(404, message, code="model_not_found")
    return model


def _number(body: dict[str, Any], name: str, low: float, high: float) -> None:
    value = body.get(name)
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
    ):
        raise Refusal(400, f"Invalid '{name}': must be from {low} to {high}.", param=name)


def _json_object(content_type: str, raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not content_type.startswith("application/json"):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    return body


def _form(content_type: str, raw: bytes) -> dict[str, tuple[str | None, bytes]]:
    """(file name, content) by the field's name."""
    if not content_type.startswith("multipart/form-data"):
        raise Refusal(415, "Unsupported Media Type: send multipart/form-data.")
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + raw, policy=HTTP)
    found: dict[str, tuple[str | None, bytes]] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            found[name] = (part.get_filename(), content)
    return found


def _as_json(body: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(body).encode()
