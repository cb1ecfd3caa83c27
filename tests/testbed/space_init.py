"""The first process of a `Space`: makes the mounts that keep a cluster's traces to itself, then waits for its end.

Run as a plain script by `tests.testbed.space`, in new namespaces for mounts, processes and network. When its standard
input closes, because the one who started it closed it or died, it ends; the kernel then kills all processes of the
space, and with them go their mounts, interfaces and packet filter rules.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

# the kubelet sets these for the whole machine; here it sets files
SYSCTLS = ("kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
           "vm/overcommit_memory", "vm/panic_on_oom")  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    # the kernel reaps children of a first process that ignores them; the servers' shims become such children
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _mount("--make-rshared", "/")
    for name in SYSCTLS:
        copy = folder / "sysctl" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(Path("/proc/sys", name).read_text())
        _mount("--bind", str(copy), f"/proc/sys/{name}")
    for path in ("/var/lib", "/var/log"):
        inside = folder / path.lstrip("/")
        inside.mkdir(parents=True)
        _mount("--bind", str(inside), path)
    _replace_resolver(folder / "resolv.conf")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(1, b"ready\n")
    while os.read(0, 1):
        pass


def _replace_resolver(ours: Path) -> None:
    target = Path(os.path.realpath("/etc/resolv.conf"))
    _mount("-t", "tmpfs", "stepway", "/run")
    if target.exists():
        _mount("--bind", str(ours), str(target))
    else:  # it was in /run
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(ours.read_bytes())


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main()
