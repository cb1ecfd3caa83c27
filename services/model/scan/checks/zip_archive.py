"""Zip archives: torch, npz, keras, skops and plain ones. Paths, links, bombs, encryption; every member is looked into.

Read in the relaxed way in which torch reads them: wrong checksums and flags do not hide a member.
"""

import stat
import struct
import zipfile
import zlib

from picklescan.relaxed_zipfile import RelaxedZipFile

from services.model.scan.checks.names import fault_of_path
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "zip_archive"
KINDS = frozenset((Kind.ZIP,))

_LOCAL_HEADER = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 0x1 | 0x40 | 0x2000


def look(item: Item, findings: Findings) -> None:
    try:
        with RelaxedZipFile(item.file) as archive:
            _members(item, findings, archive)
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, EOFError, OverflowError) as error:
        raise Unreadable(f"the zip archive is broken: {error}") from None


def _members(item: Item, findings: Findings, archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    seen: set[str] = set()
    torch = any(member.filename.endswith("data.pkl") for member in members)
    for member in members:
        name = member.filename
        if name in seen:
            findings.issue(
                item, NAME, "high", "Two members have one name", f"Which {name} counts depends on the reader."
            )  # fmt: skip
        seen.add(name)
        _outside(item, findings, member)
        if not member.is_dir():
            findings.spend(member.file_size, member.compress_size)
            _inside(item, findings, archive, member, torch)


def _outside(item: Item, findings: Findings, member: zipfile.ZipInfo) -> None:
    """What the directory says of a member."""
    name = member.orig_filename
    if fault := fault_of_path(name):
        findings.issue(item, NAME, "high", "A member's path is unsafe", f"The path {name} {fault}.")
    if stat.S_ISLNK(member.external_attr >> 16):
        findings.issue(item, NAME, "high", "A member is a link", f"{name} points to another place when unpacked.")
    if member.flag_bits & _ENCRYPTED:
        findings.issue(item, NAME, "medium", "A member is marked as encrypted", f"{name} is hidden from scanners.")
        findings.error(item, NAME, f"The member {name} is marked as encrypted and may not have been read.")


def _inside(item: Item, findings: Findings, archive: zipfile.ZipFile, member: zipfile.ZipInfo, torch: bool) -> None:
    start = _start_of_data(item, findings, member)
    if member.compress_type == zipfile.ZIP_STORED:
        if start + member.file_size > item.size or member.file_size != member.compress_size:
            raise Unreadable(f"the member {member.filename} lies outside of the archive")
        numbers = torch and _is_storage(member.filename)
        inner = item.part(member.filename, start, member.file_size, tensor_data=numbers)
        findings.inspect(inner)
        return
    try:
        with archive.open(member) as source:
            inner = item.unpacked(member.filename, source, member.file_size)
    except (zlib.error, OSError, ValueError, NotImplementedError, zipfile.BadZipFile, EOFError) as error:
        findings.error(item, NAME, f"The member {member.filename} cannot be unpacked: {str(error).rstrip('.')}.")
        return
    inner.tensor_data = torch and _is_storage(member.filename)
    findings.inspect(inner)
    if inner.size != member.file_size:
        findings.error(item, NAME, f"The member {member.filename} ends too early.")


def _start_of_data(item: Item, findings: Findings, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin, by its local header, whose name must be that of the directory."""
    raw = item.at(member.header_offset, _LOCAL_HEADER.size)
    if len(raw) < _LOCAL_HEADER.size or not raw.startswith(b"PK\x03\x04"):
        raise Unreadable(f"the member {member.filename} has no header")
    fields: tuple[int, ...] = _LOCAL_HEADER.unpack(raw)[1:]
    name_size, extra_size = fields[-2:]
    name = item.at(member.header_offset + _LOCAL_HEADER.size, name_size)
    if name.decode("utf-8", "replace").rstrip("\x00") not in (member.orig_filename, member.filename) and name.isascii():
        findings.issue(
            item, NAME, "high", "A member has two names",
            f"{member.filename} in the directory is {name.decode('ascii')} at its place.",
        )  # fmt: skip
    return member.header_offset + _LOCAL_HEADER.size + name_size + extra_size


def _is_storage(name: str) -> bool:
    """`archive/data/7`: a storage of torch."""
    folder, _, last = name.rpartition("/")
    return last.isdigit() and folder.split("/")[-1] in ("data", "constants")
