"""The environment of the peers that benches measure beside us (`locks/bench.txt`): installed once, apart from our own."""

import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "locks" / "bench.txt"
FOLDER = ROOT / "bench-results" / "peers-venv"  # kept: the next run need not install again
SECONDS = 400


def environment() -> Path:
    """The folder of the programs of an environment with what the lock names."""
    programs, done = FOLDER / "bin", FOLDER / "lock.txt"
    if not done.exists() or done.read_bytes() != LOCK.read_bytes():
        venv.create(FOLDER, with_pip=True, clear=True)
        install = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--require-hashes", "-r", str(LOCK)], check=True, timeout=SECONDS)
        done.write_bytes(LOCK.read_bytes())
    return programs
