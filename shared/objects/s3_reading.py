"""One object of a bucket as it is read: a stream that is taken up again where it was when the connection breaks.

Memory: one chunk, or some batches of pieces, and what the socket holds. Blocks; `s3` runs it in threads.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import urllib3

from shared.objects.allocator import keep_freed_memory
from shared.objects.s3_bucket import Bucket, Patience, past_the_end, replaced
from shared.objects.s3_faults import FAULTS
from shared.objects.store import ObjectNotFound, SourceChanged, StoreUnavailable

PIECE = 32 * 1024  # bytes: pages for larger writes to a new file are slow to find where memory is fragmented
BATCH = 256 * 1024  # bytes that one thread gives another at a time
AHEAD = 4  # batches that wait to be taken


class Reading:
    """Bytes `start` up to `end` (None: all) of the object `name`.

    One thread at a time calls `next`; `close` may be called meanwhile, and lets that thread end by itself.
    """

    def __init__(self, bucket: Bucket, name: str, start: int, end: int | None) -> None:
        self._bucket = bucket
        self._name = name
        self._at = start
        self._end = end
        self._etag: str | None = None
        self._answer: urllib3.BaseHTTPResponse | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._busy = False

    def next(self, size: int, *, whole: bool = True) -> bytes:
        """At most `size` bytes; none at the end. Fewer than `size` only at the end, or, when not `whole`, if fewer came.

        Raises `ObjectNotFound`, `SourceChanged`, `StoreUnavailable`."""
        with self._lock:
            self._busy = True
        try:
            return self._next(size, whole)
        finally:
            with self._lock:
                self._busy = False
                if self._stop.is_set():
                    self._let_go()

    def pour(self, take: Callable[[bytes], None]) -> None:
        """All of it, as it comes. One thread receives, another one takes; what was received before a fault is taken."""
        keep_freed_memory()
        ahead: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as taker:
            more = True
            while more:
                pieces: list[bytes] = []
                try:
                    more = self._gather(pieces)
                finally:
                    ahead.append(taker.submit(self._hand_on, pieces, take, ahead[-1] if ahead else None))
                if len(ahead) > AHEAD:
                    ahead.popleft().result()
            ahead[-1].result()

    def close(self) -> None:
        """Let go of the connection; a `next` that waits for bytes ends with an error."""
        with self._lock:
            self._stop.set()
            if not self._busy:
                self._let_go()
                return
            answer = self._answer
        try:
            if answer is not None:
                answer.shutdown()
        except (ValueError, RuntimeError, OSError, NotImplementedError):
            pass  # nothing is on its way

    def _next(self, size: int, whole: bool) -> bytes:
        patience = Patience(self._bucket.patience)
        while True:
            if self._stop.is_set():
                raise StoreUnavailable(f"The read of {self._name} was ended.")
            try:
                if self._answer is None and not self._open():
                    return b""
                return self._take(size, whole)
            except (*FAULTS, OSError) as error:
                self._let_go()
                patience.after(self._outcome(error), self._stop)

    def _gather(self, pieces: list[bytes]) -> bool:
        """Receive a batch, in pieces so small that each is still in the processor's cache; False at the end."""
        size = 0
        while size < BATCH:
            data = self.next(PIECE, whole=False)
            if not data:
                return False
            pieces.append(data)
            size += len(data)
        return True

    def _hand_on(self, pieces: list[bytes], take: Callable[[bytes], None], before: "Future[None] | None") -> None:
        """Nothing is taken after `close`, nor after a piece that could not be: that one's error is raised again."""
        if before is not None:
            before.result()
        for data in pieces:
            if self._stop.is_set():
                return
            take(data)

    def _let_go(self) -> None:
        """A connection that was read to its end serves another request, others are closed."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self._at == self._end:
            answer.release_conn()
        answer.close()

    def _open(self) -> bool:
        """Ask for the rest; whether there is any. The first answer tells which object it is, and where it ends."""
        if self._end is not None and self._at >= self._end:
            if self._etag is None:
                self._bucket.stat(self._name)  # an empty range of what is not there is not found either
            return False
        length = None if self._end is None else self._end - self._at
        try:
            answer = self._bucket.open(self._name, self._at, length, self._etag)
        except FAULTS as error:
            if past_the_end(error):
                return False
            raise
        self._answer = answer
        self._etag = (answer.headers.get("etag") or "").strip('"') or None
        self._end = self._at + int(answer.headers.get("content-length") or 0)
        return True

    def _take(self, size: int, whole: bool) -> bytes:
        answer, end = self._answer, self._end or 0
        if answer is None or self._at >= end:
            self._let_go()
            return b""
        receive = answer.read if whole else answer.read1  # without the copies of the client's own buffer
        data: bytes = receive(min(size, end - self._at), decode_content=False)
        if not data:
            raise urllib3.exceptions.ProtocolError("the answer ended before the object did")
        self._at += len(data)
        if self._at == end:
            self._let_go()
        return data

    def _outcome(self, error: Exception) -> Exception:
        if replaced(error):
            return SourceChanged(f"the object {self._name} was replaced while it was read")
        if isinstance(error, OSError):  # the socket's own, between two requests
            return StoreUnavailable(f"The connection to the object store at {self._bucket.place.endpoint} broke off.")
        found = self._bucket.fault(error)
        return ObjectNotFound(f"there is no object {self._name}") if isinstance(found, ObjectNotFound) else found
