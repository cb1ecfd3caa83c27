"""Runs a blocking function in a child process that can be killed: a thread cannot be.

`run_child` is the parent's half; `python -m shared.jobs.child package.module:function` is the child's. The argument
goes over stdin as JSON; progress and the result come back as JSON lines over a pipe of their own, so that a library
that prints disturbs nothing. Steps (shared/jobs) use it for hashing, scanning and unpacking. Only the standard
library is imported at the top: the child's start is paid for every call.
"""

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from shared.jobs.outcomes import Permanent, Retry

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T", bound="BaseModel")
Progress = Callable[[float | None, str], None]

_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR")
_STDERR_KEPT = 4096
_MAX_LINE = 256 * 1024 * 1024  # of one progress or result line; more is a fault of the function
_OUT_OF_MEMORY = 83  # exit status: the memory limit was met
_PR_SET_PDEATHSIG = 1


class ChildDied(Exception):
    """The child ended without a result. `signal` and `exit_code`: one of them is set. `stderr`: its last 4 KiB."""

    def __init__(self, message: str, *, signal: int | None = None, exit_code: int | None = None, stderr: str = ""):
        super().__init__(message)
        self.signal = signal
        self.exit_code = exit_code
        self.stderr = stderr


class ChildTimeout(Exception):
    """The child was still at work when its time was over, and was killed."""


async def run_child(
    target: str,
    argument: "BaseModel",
    result: type[T],
    *,
    memory_bytes: int | None,
    timeout: float | None,
    on_progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
) -> T:
    """What `target` ("package.module:function") makes of `argument` and a progress function, in a child process.

    `memory_bytes` limits the child's own memory (mapped files are not counted), `timeout` is in seconds.
    Raises the `Permanent` or `Retry` that the function raised, else `ChildDied` or `ChildTimeout`.
    When this call ends, in whatever way, the child and all that it started are dead.
    """
    reading, writing = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-X", "utf8", "-X", "faulthandler", "-m", "shared.jobs.child",
            target, str(writing), str(memory_bytes or 0), str(os.getpid()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            pass_fds=[writing], start_new_session=True,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(environment or {}),
        )  # fmt: skip
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    conversation = _Conversation(process, reading, on_progress)
    try:
        async with asyncio.timeout(timeout):
            answer = await conversation.hold(argument.model_dump_json().encode())
    except TimeoutError:
        raise ChildTimeout(f"The work took longer than {timeout:g} seconds and was stopped.") from None
    finally:
        await conversation.end()
    if answer is None:
        raise _death(process.returncode or 0, conversation.stderr_tail, memory_bytes)
    return result.model_validate_json(answer)


class _Conversation:
    """The parent's side of one child: feeds stdin, reads the pipe and stderr, kills and reaps."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int, on_progress: Progress | None) -> None:
        self._process = process
        self._pipe = pipe
        self._on_progress = on_progress
        self._stderr = bytearray()
        self._draining: asyncio.Task[None] | None = None
        self._transport: asyncio.ReadTransport | None = None

    @property
    def stderr_tail(self) -> str:
        return self._stderr.decode(errors="replace")

    async def hold(self, argument: bytes) -> str | None:
        """The result as JSON; None if the child ended without one. Raises what the function raised."""
        self._draining = asyncio.create_task(self._drain_stderr())
        reader = asyncio.StreamReader(limit=_MAX_LINE)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(self._pipe, "rb", 0)
        )
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stdin.write(argument)
            await stdin.drain()
            stdin.close()
        while line := await reader.readline():
            answer = self._understand(json.loads(line))
            if answer is not None:
                return answer
        await self._process.wait()
        await self._draining
        return None

    def _understand(self, message: dict[str, object]) -> str | None:
        match message:
            case {"progress": [fraction, str(text)]}:
                if self._on_progress is not None:
                    self._on_progress(fraction if isinstance(fraction, int | float) else None, text)
                return None
            case {"permanent": [str(code), str(text)]}:
                raise Permanent(code, text)
            case {"retry": [str(code), str(text), after]}:
                raise Retry(code, text, after=float(after) if isinstance(after, int | float) else None)
            case {"result": str(answer)}:
                return answer
        raise ChildDied("The child process sent something that is not part of its protocol.")

    async def _drain_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while block := await stderr.read(65536):
            self._stderr = (self._stderr + block)[-_STDERR_KEPT:]

    async def end(self) -> None:
        """Kill the group and reap the child; not cut short by a cancellation, which is passed on afterwards."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        cancelled: asyncio.CancelledError | None = None
        reaping = asyncio.ensure_future(self._process.wait())
        while not reaping.done():
            try:
                await asyncio.shield(reaping)
            except asyncio.CancelledError as error:
                cancelled = error
        if self._draining is not None:
            self._draining.cancel()
        if self._transport is not None:
            self._transport.close()
        else:
            os.close(self._pipe)
        if cancelled is not None:
            raise cancelled


def _death(status: int, stderr: str, memory_bytes: int | None) -> ChildDied:
    if status == _OUT_OF_MEMORY or (status < 0 and "MemoryError" in stderr):
        limit = f" its limit of {memory_bytes // 1024**2} MiB of" if memory_bytes else " the machine's"
        return ChildDied(f"The work needed more than{limit} memory.", exit_code=_OUT_OF_MEMORY, stderr=stderr)
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = str(-status)
        return ChildDied(f"The child process was ended by signal {name}.", signal=-status, stderr=stderr)
    return ChildDied(f"The child process ended with status {status} and no result.", exit_code=status, stderr=stderr)


def _bind_to_parent(parent: int) -> None:
    """Die when the parent does. It may have died before the call: then there is another parent already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes:
        # Not RLIMIT_AS: a mapped model file of many GB takes address space but no memory of its own.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))


def _main(target: str, pipe: int, memory_bytes: int, parent: int) -> None:
    _bind_to_parent(parent)
    os.set_inheritable(pipe, False)
    _limit(memory_bytes)
    with os.fdopen(pipe, "wb", 0) as out:

        def send(**message: object) -> None:
            data = memoryview(json.dumps(message).encode() + b"\n")
            while data:
                data = data[out.write(data) or 0 :]

        try:
            module, _, name = target.partition(":")
            function = getattr(importlib.import_module(module), name)
            hints = [hint for key, hint in get_type_hints(function).items() if key != "return"]
            argument = hints[0].model_validate_json(sys.stdin.buffer.read())
            answer = function(argument, lambda fraction, message: send(progress=[fraction, message]))
            send(result=answer.model_dump_json())
        except Permanent as error:
            send(permanent=[error.code, error.message])
        except Retry as error:
            send(retry=[error.code, error.message, error.after])
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
