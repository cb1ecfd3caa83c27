"""Runs a function of this package in a child process, and says in a task's words how that ended."""

import asyncio
import os
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from shared.jobs.child import ChildDied, ChildTimeout, run_child
from shared.jobs.outcomes import Permanent, Retry
from shared.jobs.zygote import OUT_OF_MEMORY
from stepway.tasks import TaskError

T = TypeVar("T", bound=BaseModel)

MEMORY = 768 * 1024**2  # bytes of one child
_CODE = {"PYTHONPATH": str(Path(__file__).parents[3])}  # a child runs the code that its caller runs
_AT_ONCE = max(2, os.cpu_count() or 1)  # children that compute; a hundred at once would take all memory
_free: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


async def computed(target: str, argument: BaseModel, result: type[T], *, work: str, seconds: float) -> T:
    """What `target` ("package.module:function") makes of `argument`. `work` begins the sentence of a fault.

    Raises `TaskError`: what the function raised, or `too_complex` beyond `seconds` or `MEMORY`.
    """
    loop = asyncio.get_running_loop()
    async with _free.setdefault(loop, asyncio.Semaphore(_AT_ONCE)):
        try:
            return await run_child(target, argument, result, memory_bytes=MEMORY, timeout=seconds, environment=_CODE)
        except PydanticSerializationError:
            raise TaskError("bad_input", f"{work} cannot begin: a text is not Unicode, or it is too deep.") from None
        except Permanent as error:
            raise TaskError(error.code, error.message) from None
        except Retry as error:
            raise TaskError(error.code, error.message, retryable=True, after=error.after) from None
        except ChildTimeout:
            raise TaskError("too_complex", f"{work} took longer than {seconds:g} seconds and was stopped.") from None
        except ChildDied as died:
            if died.exit_code == OUT_OF_MEMORY:
                message = f"{work} needed more than {MEMORY // 1024**2} MiB of memory and was stopped."
                raise TaskError("too_complex", message) from None
            raise TaskError("computation_failed", f"{work} did not come to an end. {died}", retryable=True) from None
