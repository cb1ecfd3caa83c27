"""Functions that test_child.py runs in a child process."""

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from shared.jobs.outcomes import Permanent, Retry

Progress = Callable[[float | None, str], None]


class Question(BaseModel):
    text: str = ""
    number: int = 0


class Answer(BaseModel):
    text: str = ""
    number: int = 0
    environment: dict[str, str] = {}


def double(question: Question, progress: Progress) -> Answer:
    sys.stdout.write("a library that prints")
    progress(0.5, "half")
    progress(None, "unknown")
    return Answer(text=question.text * 2, number=question.number * 2, environment=dict(os.environ))


def permanent(question: Question, progress: Progress) -> Answer:
    raise Permanent("bad_file", "The file is bad.")


def retry(question: Question, progress: Progress) -> Answer:
    raise Retry("busy", "Later.", after=7.5)


def fault(question: Question, progress: Progress) -> Answer:
    raise ValueError("a fault of ours")


def kill_itself(question: Question, progress: Progress) -> Answer:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Answer()


def eat_memory(question: Question, progress: Progress) -> Answer:
    return Answer(text=str(len(bytearray(question.number))))


def map_file(question: Question, progress: Progress) -> Answer:
    with Path(question.text).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return Answer(number=len(mapped) + mapped[0])


def hang(question: Question, progress: Progress) -> Answer:
    """Starts a grandchild, says both process ids, and never ends."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    progress(None, f"{os.getpid()} {grandchild.pid}")
    time.sleep(600)
    return Answer()


def leave_one_behind(question: Question, progress: Progress) -> Answer:
    return Answer(number=subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)


def much_noise(question: Question, progress: Progress) -> Answer:
    sys.stderr.write("x" * 1_000_000 + "the end")
    sys.stderr.flush()
    os._exit(3)


def who(question: Question, progress: Progress) -> Answer:
    """The process that this one was forked from."""
    return Answer(number=os.getppid())


_remembered: list[str] = []


def remember(question: Question, progress: Progress) -> Answer:
    """All that this process was ever given."""
    _remembered.append(question.text)
    return Answer(text=" ".join(_remembered))


def descriptors(question: Question, progress: Progress) -> Answer:
    """What is open, by kind, but for the directory that is read to know it."""
    places = [place for place in list(Path("/proc/self/fd").iterdir()) if place.is_symlink()]
    return Answer(text=" ".join(str(place.readlink()).partition(":")[0] for place in places))
