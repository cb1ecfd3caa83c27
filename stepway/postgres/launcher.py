"""Becomes `postgres` or `initdb`: under a user that PostgreSQL accepts, and bound to the life of its parent.

`embedded` runs this file as a program of its own (`python -I -S launcher.py PLAN`), with a plan in JSON. It imports
the standard library only. Being a fresh process of one thread, it may change its user, and as it ends in `exec`, the
server is a direct child of Stepway.

PostgreSQL refuses to run as root. Started by root, this takes the first of three ways that works:
1. drop to the owner of the data, or to `nobody`, where that user can reach the programs and the data;
2. a user namespace in which root bears another number: no path needs to be readable to anyone else;
3. drop all the same, and keep CAP_DAC_OVERRIDE alone (containers allow no user namespaces, but this).
"""

import ctypes
import json
import os
import pwd
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522
CLONE_NEWUSER = 0x10000000

# The rule of authentication. Anyone who comes to the socket is our user, as only that user may enter its folder;
# but where we dropped to `nobody`, other processes of that user could, and so only root is let in.
ANYONE = "local all stepway trust"
ONLY_ROOT = "local all stepway peer map=stepway"


def fail(message: str) -> NoReturn:
    sys.exit(f"FATAL:  {message}")


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def check(result: int, action: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{action}: {os.strerror(number)}")


def account(owner: int) -> pwd.struct_passwd:
    """The user to run as instead of root: the owner of the data, `nobody`, or else any user."""
    users = [user for user in pwd.getpwall() if user.pw_uid != 0]
    if not users:
        fail("PostgreSQL does not run as root, and this system has no other user")
    return min(users, key=lambda user: (user.pw_uid != owner, user.pw_name != "nobody"))


def can_reach(user: pwd.struct_passwd, plan: dict[str, Any]) -> bool:
    """Whether the user can run the programs and come to the data. Asks the kernel, so that ACLs count too."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        readable = all(os.access(path, os.R_OK | os.X_OK, effective_ids=True) for path in plan["readable"])
        return readable and all(os.access(path, os.X_OK, effective_ids=True) for path in plan["searchable"])
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def own(folder: str, uid: int, gid: int) -> None:
    """Give a folder of PostgreSQL's, and all in it, to the user. Follows no link; does nothing when it is so."""
    if Path(folder).lstat().st_uid == uid:
        return
    for _, folders, files, handle in os.fwalk(folder):
        for name in folders + files:
            os.chown(name, uid, gid, dir_fd=handle, follow_symlinks=False)
    os.chown(folder, uid, gid, follow_symlinks=False)  # last: it tells that the rest is done


def let_in(plan: dict[str, Any], user: pwd.struct_passwd) -> None:
    """The top folder stays root's (locks, log); the user's group may pass through it, and no more."""
    os.chown(plan["data_dir"], -1, user.pw_gid)
    Path(plan["data_dir"]).chmod(0o710)


def drop(plan: dict[str, Any], user: pwd.struct_passwd) -> None:
    for folder in plan["owned"]:
        own(folder, user.pw_uid, user.pw_gid)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def namespaces_work(user: pwd.struct_passwd) -> bool:
    """Tried in a child, for half a change of user could not be taken back."""
    child = os.fork()
    if child == 0:
        try:
            enter_namespace(user)
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def enter_namespace(user: pwd.struct_passwd) -> None:
    """A user namespace in which the present user bears the number of `user`. Raises OSError where none is allowed."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc().unshare(CLONE_NEWUSER), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user.pw_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{user.pw_gid} {gid} 1")


def drop_with_access(plan: dict[str, Any], user: pwd.struct_passwd) -> None:
    """Drop to the user, and keep the one capability that passes by the modes of folders. Raises OSError if refused."""
    check(libc().prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    drop(plan, user)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    bit = 1 << CAP_DAC_OVERRIDE
    check(libc().capset(header, (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)), "capset")
    check(libc().prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0), "prctl")


def leave_root(plan: dict[str, Any]) -> str:
    """Stop being root. Returns the authentication rule by which only root's connections are let in."""
    user = account(plan["owner"])
    if can_reach(user, plan):
        let_in(plan, user)
        drop(plan, user)
        return ONLY_ROOT
    if namespaces_work(user):
        for folder in plan["owned"]:
            own(folder, 0, 0)
        enter_namespace(user)
        return ANYONE
    try:
        drop_with_access(plan, user)
    except OSError as error:
        fail(f"PostgreSQL does not run as root, and the user {user.pw_name} cannot reach its files ({error})")
    return ONLY_ROOT


def leave_namelessness() -> None:
    """initdb wants its user to have a name; containers run under numbers that have none."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        try:
            enter_namespace(account(-1))
        except OSError:
            fail(f"the user {os.geteuid()} has no name in /etc/passwd: add one")


def write_access_rules(cluster: str, rule: str) -> None:
    """At every start, as the way of running may have changed; by the user itself, as root would follow its links."""
    rules = {"pg_hba.conf": f"{rule}\n"}
    if rule == ONLY_ROOT:
        rules["pg_ident.conf"] = f'stepway "{pwd.getpwuid(0).pw_name}" stepway\n'
    for name, text in rules.items():
        file = Path(cluster, name)
        if file.read_text() != text:
            file.write_text(text)


def die_with(parent: int) -> None:
    """Ask for an immediate shutdown (SIGQUIT, which loses no committed data) when the parent ends, however it ends.

    Comes after every change of user, for each clears it.
    """
    if sys.platform != "linux":
        return
    check(libc().prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        fail("Stepway ended meanwhile")


def main() -> None:
    plan = json.loads(sys.argv[1])
    rule = ANYONE
    if os.geteuid() == 0:
        rule = leave_root(plan)
    elif plan["initialises"]:
        leave_namelessness()
    if plan["cluster"]:
        write_access_rules(plan["cluster"], rule)
    die_with(plan["parent"])
    os.execv(plan["command"][0], plan["command"])  # noqa: S606  a plan of ours, and no shell wanted


if __name__ == "__main__":
    try:
        main()
    except OSError as problem:
        fail(str(problem))
