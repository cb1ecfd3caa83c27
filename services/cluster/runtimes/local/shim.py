"""The program of one detached supervisor: `python -I -S shim.py FOLDER DESCRIPTOR`. Standard library only, about 10 MB.

Exit status, given as soon as the supervisor runs by itself: 0, or 75 when another one already looks after the folder. DESCRIPTOR
is a lock that is kept open until then, and no longer.
"""

import fcntl
import json
import os
import sys
import time
from pathlib import Path

ALREADY_RUNNING = 75
_PATIENCE = 1.0  # seconds for a supervisor that is on its way out


def main(folder: Path, starting: int) -> int:
    from services.cluster.runtimes.local.processes import identify
    from services.cluster.runtimes.local.spec import LOCK, Spec
    from services.cluster.runtimes.local.supervisor import Supervisor

    os.umask(0o077)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    if not _acquire(lock):
        return ALREADY_RUNNING
    spec = Spec.read(folder)
    if spec is None:
        sys.stderr.write(f"no readable spec in {folder}\n")
        return 1
    reading, writing = os.pipe()
    if os.fork() != 0:  # the lock belongs to the open file, and so stays with the child
        os.close(writing)
        return 0 if os.read(reading, 1) else 1
    os.close(reading)
    os.close(starting)
    supervisor = Supervisor(folder, spec, lambda: os.fstat(lock).st_nlink == 0)
    supervisor.announce()
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"supervisor": identify(os.getpid())}).encode(), 0)
    os.write(writing, b"1")
    os.close(writing)
    supervisor.run()
    return 0


def _acquire(lock: int) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[4]))
    os._exit(main(Path(sys.argv[1]), int(sys.argv[2])))
