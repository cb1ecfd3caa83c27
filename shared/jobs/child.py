"""Runs a blocking function in a child process that can be killed: a thread cannot be.

`run_child` is the caller's half; `zygote` forks the child and is its half. A zygote has imported the function's module,
so a call pays for no imports but the first; it is started by the first call, ends when it has been idle, and dies with
this process. The argument, the progress and the result go over a socket of their own as JSON, so that a library that
prints disturbs nothing. Steps (shared/jobs) use it for blocking work, such as scanning.
"""

import asyncio
import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from shared.jobs.outcomes import Permanent, Retry
from shared.jobs.zygote import OUT_OF_MEMORY, REQUEST, WORD

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T", bound="BaseModel")
Progress = Callable[[float | None, str], None]

_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR")
_STDERR_KEPT = 4096
_MAX_LINE = 256 * 1024 * 1024  # of one progress or result line; more is a fault of the function
_IDLE = 120.0  # seconds after which a zygote without children ends
_REAPING = 10.0  # seconds; a zygote that needs longer to end a child is taken for stuck
_LAST_WORDS = 1.0  # seconds for what is left of stderr, which something that got away may hold open


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
    head = json.dumps({"target": target, "memory_bytes": memory_bytes or 0}).encode()
    inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    conversation = _Conversation(target.partition(":")[0], inherited | dict(environment or {}), on_progress)
    try:
        async with asyncio.timeout(timeout):
            answer = await conversation.hold(head + b"\n" + argument.model_dump_json().encode())
    except TimeoutError:
        raise ChildTimeout(f"The work took longer than {timeout:g} seconds and was stopped.") from None
    finally:
        await conversation.end()
    if answer is None:
        raise _death(conversation.status, conversation.stderr_tail, memory_bytes)
    return result.model_validate_json(answer)


class _Zygote:
    """A process that children of one module and environment are forked from. Belongs to no event loop."""

    _all: dict[tuple[str, frozenset[tuple[str, str]]], "_Zygote"] = {}  # noqa: RUF012  # one for the process
    _lock = threading.Lock()

    @classmethod
    def of(cls, module: str, environment: Mapping[str, str]) -> "_Zygote":
        """The one that runs, else a new one."""
        key = (module, frozenset(environment.items()))
        with cls._lock:
            found = cls._all.get(key)
            if found is None or found.ended:
                found = cls._all[key] = cls(module, environment)
            return found

    @classmethod
    def close_all(cls) -> None:
        with cls._lock:
            for each in cls._all.values():
                each.close()
            cls._all.clear()

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-P", "-X", "utf8", "-X", "faulthandler", "-m", "shared.jobs.zygote",
                    module, str(theirs.fileno()), str(_IDLE),
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], start_new_session=True, env=environment,
            )  # fmt: skip
        self._given_up = False
        threading.Thread(target=self._process.wait, name="zygote-reaper", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._given_up or self._process.poll() is not None

    def fork(self, life: socket.socket, talk: socket.socket, errors: socket.socket) -> None:
        """Ask for a child, whose ends these are. OSError when the zygote is gone, or does not read what it is asked."""
        socket.send_fds(self._control, [REQUEST], [life.fileno(), talk.fileno(), errors.fileno()])

    def kill(self) -> None:
        """For one that is stuck or ending: its children die with it."""
        self._given_up = True
        self._process.kill()
        self.close()

    def close(self) -> None:
        self._control.close()


def end_zygotes() -> None:
    """End all of this process, with their children; the next call starts a new one."""
    _Zygote.close_all()


atexit.register(end_zygotes)


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Conversation:
    """The caller's side of one child: has it forked, feeds and reads it, and sees it dead at the end."""

    def __init__(self, module: str, environment: Mapping[str, str], on_progress: Progress | None) -> None:
        self._module = module
        self._environment = environment
        self._on_progress = on_progress
        self._stderr = bytearray()
        self._draining: asyncio.Task[None] | None = None
        self._zygote: _Zygote | None = None
        self._streams: list[_Ends] = []  # `life`, `talk` and `errors`, as zygote.py has them
        self._pid: int | None = None
        self.status: int | None = None  # of the child: its exit status, or the signal that ended it, negative

    @property
    def stderr_tail(self) -> str:
        return self._stderr.decode(errors="replace")

    async def hold(self, request: bytes) -> str | None:
        """The result as JSON; None if the child ended without one. Raises what the function raised."""
        life, (reader, writer), errors = await self._start()
        self._draining = asyncio.create_task(self._drain_stderr(errors[0]))
        with contextlib.suppress(ConnectionError):  # a child that died early has not read it all
            writer.write(request)
            await writer.drain()
            writer.write_eof()
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                answer = self._understand(json.loads(line))
                if answer is not None:
                    return answer
        self.status = await _word(life[0])
        await asyncio.wait([self._draining], timeout=_LAST_WORDS)
        return None

    async def _start(self) -> list[_Ends]:
        """Have the child forked. Once more from a new zygote, when the one that ran has just ended for being idle."""
        for _ in range(2):
            self._zygote = _Zygote.of(self._module, self._environment)
            pairs = [socket.socketpair() for _ in range(3)]
            try:
                for ours, _ in pairs:
                    self._streams.append(await asyncio.open_unix_connection(sock=ours, limit=_MAX_LINE))
                with contextlib.suppress(OSError):
                    self._zygote.fork(*(theirs for _, theirs in pairs))
            finally:
                for ours, _ in pairs[len(self._streams) :]:
                    ours.close()
                for _, theirs in pairs:
                    theirs.close()
            self._pid = await _word(self._streams[0][0])
            if self._pid is not None:
                break
            self._zygote.kill()
            await self._close()
        if self._pid is None or self._pid < 0:
            raise ChildDied("The child process could not be started.", exit_code=1)
        return self._streams

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

    async def _drain_stderr(self, errors: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while block := await errors.read(65536):
                self._stderr = (self._stderr + block)[-_STDERR_KEPT:]

    async def end(self) -> None:
        """Have the group killed and the child reaped; not cut short by a cancellation, which is passed on afterwards."""
        ending = asyncio.ensure_future(self._end())
        cancelled: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    async def _end(self) -> None:
        if self._streams:
            reader, writer = self._streams[0]
            try:
                async with asyncio.timeout(_REAPING):
                    with contextlib.suppress(OSError):
                        writer.write_eof()  # the zygote kills the group, and closes when the child is reaped
                        while await reader.read(WORD.size):
                            pass
            except TimeoutError:
                self._kill_without_zygote()
        if self._draining is not None:
            self._draining.cancel()
        await self._close()

    def _kill_without_zygote(self) -> None:
        if self._pid is not None and self._pid > 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
        if self._zygote is not None:
            self._zygote.kill()

    async def _close(self) -> None:
        for _, writer in self._streams:
            writer.transport.abort()
        for _, writer in self._streams:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._streams = []


async def _word(life: asyncio.StreamReader) -> int | None:
    """What the zygote says next; None when it is gone."""
    try:
        return int(WORD.unpack(await life.readexactly(WORD.size))[0])
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _death(status: int | None, stderr: str, memory_bytes: int | None) -> ChildDied:
    if status is None:
        message = "The child process was ended with the process that it was forked from."
        return ChildDied(message, signal=signal.SIGKILL, stderr=stderr)
    if status == OUT_OF_MEMORY or (status < 0 and "MemoryError" in stderr):
        limit = f" its limit of {memory_bytes // 1024**2} MiB of" if memory_bytes else " the machine's"
        return ChildDied(f"The work needed more than{limit} memory.", exit_code=OUT_OF_MEMORY, stderr=stderr)
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = str(-status)
        return ChildDied(f"The child process was ended by signal {name}.", signal=-status, stderr=stderr)
    return ChildDied(f"The child process ended with status {status} and no result.", exit_code=status, stderr=stderr)
