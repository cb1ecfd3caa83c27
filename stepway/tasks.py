"""How a type of task for flows is declared: what it takes, what it gives, and the function that does the work.

A package adds types of its own by an entry point of the group `stepway.tasks`, which names a `TaskType` or a list of them.
This module imports nothing else of Stepway, so that such a package needs nothing else of it either.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

ENTRY_POINTS = "stepway.tasks"

# `any` takes every JSON value. A `file` is `{"artifact_id", "name", "media_type", "size", "sha256"}`.
ValueType = Literal["text", "number", "boolean", "file", "object", "list", "any"]
VALUE_TYPES: tuple[ValueType, ...] = ("text", "number", "boolean", "file", "object", "list", "any")


@dataclass(frozen=True, slots=True)
class Field:
    """One input or output. `choices`: the only values that are taken. `secret`: never shown to people who look."""

    name: str
    type: ValueType
    description: str = ""
    required: bool = True
    default: Any = None
    example: Any = None
    choices: tuple[Any, ...] = ()
    secret: bool = False


class TaskError(Exception):
    """The task cannot be done, for a reason that its user understands. `retryable`: it may pass by itself.

    `after`: seconds before the next try that the other side has asked for.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False, after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.after = after


@dataclass(frozen=True, slots=True)
class Fetched:
    """The head of an answer. `url`: where it came from, after redirects."""

    status: int
    url: str
    headers: Mapping[str, str]


class Answer(Protocol):
    """An answer whose body has not been read yet."""

    head: Fetched

    async def read(self) -> bytes:
        """The whole body, decompressed. Raises `TaskError` (`too_large`) beyond the limit that was given."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, under the same limit."""


class Provider(Protocol):
    """Where a model is called: an OpenAI-compatible base URL (`…/v1`), and the key for it."""

    @property
    def base_url(self) -> str: ...

    @property
    def key(self) -> str:
        """Empty where none is sent."""


class Context(Protocol):
    """What a task may use of the world. Every request goes through the guard against private addresses."""

    execution_id: str
    task: str  # its name in the flow

    def progress(self, percent: float | None = None, message: str | None = None) -> None:
        """Tell who watches how far it is (0 to 100)."""

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        limit: int = 16 << 20,
        timeout: float = 30.0,
        follow: bool = True,
    ) -> AbstractAsyncContextManager[Answer]:
        """Ask an address that came from a user. `limit` in bytes of the body, `timeout` in seconds between two chunks.

        Raises `TaskError`: `address_refused`, `unreachable` (retryable), `too_large`, `too_many_redirects`.
        """

    def http_client(self, *, timeout: float = 60.0) -> Any:
        """An `httpx.AsyncClient` behind the same guard, for a library that wants one. The caller closes it."""

    async def provider(self, given: Mapping[str, Any]) -> Provider:
        """Whom to call, by the inputs `endpoint`, `base_url` and `credential_id` of a task that has them.

        An endpoint of Stepway's own is called through the gateway. Raises `TaskError` (`provider_key_missing`, …).
        """

    async def credential(self, credential_id: str) -> Mapping[str, str]:
        """The fields of a credential that the flow names. Never put them into an output or a message."""

    async def save(self, name: str, media_type: str, content: bytes | AsyncIterator[bytes]) -> dict[str, Any]:
        """Keep a file of the execution; returns the value of a `file` output."""

    def open(self, file: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """The bytes of a `file` input, in chunks."""

    async def read(self, file: Mapping[str, Any], limit: int) -> bytes:
        """The whole of a `file` input. Raises `TaskError` (`too_large`)."""


Run = Callable[[Context, dict[str, Any]], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class TaskType:
    """A type of task. `run` gets its inputs with defaults filled in and types checked, and returns its outputs.

    `run` is None for what the flow engine itself does (delays, waits, loops, sub-flows). `one_of`: groups of inputs of which
    exactly one is given. `timeout`: seconds of one attempt, unless the flow says otherwise; `attempts`: of tries in all.
    """

    name: str  # `family.action`, in lower case
    title: str
    description: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    run: Run | None = None
    one_of: tuple[tuple[str, ...], ...] = ()
    timeout: float = 60.0
    attempts: int = 1

    def input(self, name: str) -> Field | None:
        return next((one for one in self.inputs if one.name == name), None)

    def output(self, name: str) -> Field | None:
        return next((one for one in self.outputs if one.name == name), None)
