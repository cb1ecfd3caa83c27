"""Tar archives, among them torch's oldest format. Paths, links, devices, bombs; every member is looked into."""

import tarfile

from services.model.scan.checks.names import fault_of_path
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "tar_archive"
KINDS = frozenset((Kind.TAR,))


def look(item: Item, findings: Findings) -> None:
    end = 0
    try:
        item.file.seek(0)
        with tarfile.open(fileobj=item.file, mode="r:") as archive:
            for member in archive:
                _member(item, findings, member)
                end = max(end, member.offset_data + member.size)
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise Unreadable(f"the tar archive is broken: {error}") from None
    if item.size < end:
        raise Unreadable("the tar archive ends too early")
    _behind(item, end)


def _member(item: Item, findings: Findings, member: tarfile.TarInfo) -> None:
    findings.spend(member.size, member.size)
    if fault := fault_of_path(member.name):
        findings.issue(item, NAME, "high", "A member's path is unsafe", f"The path {member.name} {fault}.")
    if member.issym() or member.islnk():
        findings.issue(
            item, NAME, "high", "A member is a link", f"{member.name} points to {member.linkname} when unpacked."
        )  # fmt: skip
    elif member.sparse is not None:
        findings.error(item, NAME, f"The member {member.name} is sparse and cannot be read.")
    elif member.isfile():
        if member.offset_data + member.size > item.size:
            raise Unreadable(f"the member {member.name} ends too early")
        findings.inspect(item.part(member.name, member.offset_data, member.size))
    elif not member.isdir():
        findings.issue(item, NAME, "high", "A member is a device", f"{member.name} is neither a file nor a folder.")


def _behind(item: Item, end: int) -> None:
    """Readers differ on what follows a broken header; nothing but zeros may."""
    at = -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    while block := item.at(at, 1 << 20):
        if block.strip(b"\x00"):
            raise Unreadable("the tar archive goes on behind its end")
        at += len(block)
