"""Pickles: they are programs. Judged by our own machine (pickles/), modelaudit-picklescan and picklescan."""

import io
import logging
import re
from typing import BinaryIO

import modelaudit_picklescan as modelaudit
from picklescan import scanner as picklescan

from services.model.scan import limits
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind
from services.model.scan.pickles.machine import Global, Machine, Trace
from services.model.scan.pickles.names import judge
from services.model.scan.pickles.opcodes import Broken, Span

NAME = "pickle_code"
KINDS = frozenset((Kind.PICKLE,))

_MODELAUDIT = "modelaudit_picklescan"
_PICKLESCAN = "picklescan"
_MAX_NESTED = 4
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_STREAMS = 5
# What these rules say of a global or an id is said better by our own allow-list.
_RULES_ON_NAMES = frozenset(("NON_ALLOWLISTED_GLOBAL", "PERSISTENT_ID", "S203"))
# Notices of modelaudit that only mean that a library is not installed here.
_HARMLESS_NOTICES = frozenset(("call_graph_source_unavailable", "persistent_id_summary"))
_POSITION = re.compile(r"\(pos \d+\)")

logging.getLogger("picklescan").setLevel(logging.CRITICAL)


def look(item: Item, findings: Findings) -> None:
    trace, broken = _walk(item, findings, item.file, item.size, depth=0)
    pickles = _without_raw_bytes(item, trace, broken)
    reviewed = {str(name) for name in trace.globals}
    strangers = any(judge(name.module, name.name) != "harmless" for name in trace.globals) or bool(trace.oddities)
    if trace.opcodes <= limits.MAX_OPCODES_MODELAUDIT:
        _ask_modelaudit(item, findings, b"".join(pickles), reviewed, deep=strangers, complete=broken is None)
    else:
        findings.issue(
            item, NAME, "low", "The pickle is too long for every scanner",
            f"It has {trace.opcodes} opcodes; modelaudit-picklescan was not asked.",
        )  # fmt: skip
    if trace.opcodes <= limits.MAX_OPCODES_PICKLESCAN:
        for data in pickles:  # one by one: it takes the memo of one pickle for that of the next
            _ask_picklescan(item, findings, data, reviewed)
    if broken is not None:
        raise Unreadable(f"the pickle is broken: {broken}")


def _walk(item: Item, findings: Findings, file: BinaryIO, size: int, depth: int) -> tuple[Trace, Broken | None]:
    """Run all pickles that follow one another, and report. The second is where and why it ended too early."""
    trace = Trace()
    machine = Machine(file, 0, size, trace)
    broken: Broken | None = None
    try:
        machine.run()
        while machine.position < size and trace.streams < limits.MAX_PICKLE_STREAMS and not _raw_storages(trace):
            machine.run()
    except Broken as error:
        broken = error
    machine.finish()
    if broken is not None and trace.streams:
        _judge_rest(item, findings, file, size, trace)
        broken = None
    _report(item, findings, trace)
    for nested in trace.nested:
        _walk_nested(item, findings, file, nested, depth)
    return trace, broken


def _walk_nested(item: Item, findings: Findings, file: BinaryIO, nested: Span | bytes, depth: int) -> None:
    """A byte string that may be a pickle for `pickle.loads`."""
    if depth >= _MAX_NESTED:
        raise Unreadable("pickles are nested too deeply")
    data: BinaryIO
    if isinstance(nested, bytes):
        data, size = io.BytesIO(nested), len(nested)
    else:
        inner = item.part("nested", nested.start, nested.size)
        data, size = inner.file, inner.size
    _walk(item, findings, data, size, depth + 1)


def _raw_storages(trace: Trace) -> bool:
    """True behind the five pickles of torch's old format: what follows is numbers."""
    return trace.streams >= _TORCH_STREAMS and trace.first_value == _TORCH_MAGIC


def _judge_rest(item: Item, findings: Findings, file: BinaryIO, size: int, trace: Trace) -> None:
    file.seek(trace.end)
    if file.read(min(size - trace.end, limits.LARGE_BYTES)).strip(b"\x00\r\n "):
        findings.issue(
            item, NAME, "medium", "Bytes follow the end of the pickle",
            f"From byte {trace.end} on there are {size - trace.end} bytes that are not part of any pickle.",
        )  # fmt: skip


def _report(item: Item, findings: Findings, trace: Trace) -> None:
    for found, position in trace.globals.items():
        _report_global(item, findings, found, position, called=found in trace.calls)
    for what, position in trace.oddities.items():
        findings.issue(
            item, NAME, "high", "The pickle hides what it does", f"At byte {position} {what}."
        )  # fmt: skip
    if trace.foreign_ids:
        findings.issue(
            item, NAME, "low", "The pickle leaves objects to its reader",
            f"{trace.foreign_ids} persistent ids are not storages of torch.",
        )  # fmt: skip


def _report_global(item: Item, findings: Findings, found: Global, position: int, called: bool) -> None:
    verdict = judge(found.module, found.name)
    if verdict == "harmless":
        return
    does = "imports and calls" if called else "imports"
    findings.issue(
        item, NAME, "critical" if verdict == "dangerous" else "medium",
        f"The pickle {does} {found}",
        f"At byte {position}. "
        + ("It can run code, reach files or the network when the file is loaded." if verdict == "dangerous"
           else "It is not known to be harmless; review it before the file is loaded."),
    )  # fmt: skip


def _without_raw_bytes(item: Item, trace: Trace, broken: Broken | None) -> list[bytes]:
    """The pickles for the other scanners, without their numbers; whole if they are broken."""
    if broken is not None and item.size <= limits.MAX_PICKLE_TO_OTHERS:
        return [item.at(0, item.size)]
    pickles = [bytearray()]
    size = 0
    for piece in trace.pieces:
        if piece is None:
            pickles.append(bytearray())
            continue
        data = piece if isinstance(piece, bytes) else item.at(piece[0], piece[1] - piece[0])
        size += len(data)
        if size > limits.MAX_PICKLE_TO_OTHERS:
            raise Unreadable("the pickle has too many opcodes to be judged")
        pickles[-1] += data
    return [bytes(data) for data in pickles if data]


def _ask_modelaudit(
    item: Item, findings: Findings, data: bytes, reviewed: set[str], deep: bool, complete: bool
) -> None:
    options = modelaudit.ScanOptions(timeout_s=120, max_opcodes=10 * limits.MAX_OPCODES_MODELAUDIT)
    report = modelaudit.PickleScanner(options=options).scan_bytes(data, source=item.path, enrich_call_graph=deep)
    for finding in report.findings:
        critical = finding.severity is modelaudit.Severity.CRITICAL
        if not critical and finding.rule_code in _RULES_ON_NAMES and _is_reviewed(finding, reviewed):
            continue
        findings.issue(
            item, _MODELAUDIT, "critical" if critical else "medium",
            _POSITION.sub("", finding.message), finding.why or f"Rule {finding.rule_code} of modelaudit-picklescan.",
        )  # fmt: skip
    for error in report.errors:
        findings.error(item, _MODELAUDIT, error.message)
    gaps = {notice.code for notice in report.notices if notice.details.get("analysis_incomplete")} - _HARMLESS_NOTICES
    if complete and gaps:
        findings.error(item, _MODELAUDIT, f"The analysis is incomplete: {', '.join(sorted(map(str, gaps)))}.")


def _is_reviewed(finding: modelaudit.Finding, reviewed: set[str]) -> bool:
    reference = finding.details.get("import_reference")
    return finding.rule_code == "PERSISTENT_ID" if reference is None else reference in reviewed


def _ask_picklescan(item: Item, findings: Findings, data: bytes, reviewed: set[str]) -> None:
    try:
        result = picklescan.scan_pickle_bytes(io.BytesIO(data), item.path)
    except Exception as error:  # its parser is not made for hostile files: say so, and go on
        findings.error(item, _PICKLESCAN, f"The scanner failed: {type(error).__name__}.")
        return
    for found in result.globals:
        if found.safety is picklescan.SafetyLevel.Dangerous:
            findings.issue(
                item, _PICKLESCAN, "critical", f"Dangerous import {found.module}.{found.name}",
                "It is on picklescan's list of imports that can run code.",
            )  # fmt: skip
        elif f"{found.module}.{found.name}" not in reviewed and judge(found.module, found.name) != "harmless":
            findings.issue(
                item, _PICKLESCAN, "medium", f"Unknown import {found.module}.{found.name}",
                "picklescan found an import that no other scanner saw.",
            )  # fmt: skip
