"""The page that every problem's `type` points to, /docs/errors, and docs/errors.md; both made from the registry of codes.

python -m services.app.error_docs > docs/errors.md
"""

from collections import defaultdict
from html import escape

from shared.error_codes import CODES, Code
from shared.job_error_codes import JOB_CODES, JobCode

ABOUT_JOBS = "A job that has failed has one of these in `error.code`, or one of those above. All can be retried."


def _by_status() -> dict[int, list[tuple[str, Code]]]:
    found: dict[int, list[tuple[str, Code]]] = defaultdict(list)
    for name, code in sorted(CODES.items()):
        found[code.status].append((name, code))
    return dict(sorted(found.items()))


def _of_jobs() -> list[tuple[str, JobCode]]:
    """What only jobs fail with; a code that requests are refused with, too, stands there."""
    return sorted((name, code) for name, code in JOB_CODES.items() if name not in CODES)


def markdown() -> str:
    lines = [
        "# Error codes",
        "",
        "Every refusal is `application/problem+json` with a stable `code`. `errors` lists all faults, each with the field",
        "(`param`), a code, a sentence, and the wizard's `step`. Codes marked *retryable* may succeed when repeated as they",
        "are, after `Retry-After` where it is sent.",
        "",
        "This page is made from `shared/error_codes.py` and `shared/job_error_codes.py` by",
        "`python -m services.app.error_docs > docs/errors.md`.",
    ]
    for status, codes in _by_status().items():
        lines += ["", f"## {status}", "", "| code | what it says | what to do |", "|---|---|---|"]
        for name, code in codes:
            retry = " *retryable*" if code.retryable else ""
            lines.append(f'| <a id="{name}"></a>`{name}`{retry} | {code.title} | {code.remedy} |')
    lines += ["", "## Jobs", "", ABOUT_JOBS, "", "| code | what it says | what to do |", "|---|---|---|"]
    lines += [f'| <a id="{name}"></a>`{name}` | {code.title} | {code.remedy} |' for name, code in _of_jobs()]
    return "\n".join(lines) + "\n"


def page() -> str:
    """A plain HTML page with an anchor for each code; no script, no outside asset."""
    rows = [
        f'<tr id="{name}"><td><code>{name}</code></td><td>{status}</td><td>{escape(code.title)}</td>'
        f"<td>{escape(code.remedy)}</td></tr>"
        for status, codes in _by_status().items()
        for name, code in codes
    ]
    rows += [
        f'<tr id="{name}"><td><code>{name}</code></td><td>job</td><td>{escape(code.title)}</td>'
        f"<td>{escape(code.remedy)}</td></tr>"
        for name, code in _of_jobs()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Stepway: error codes</title></head><body>'
        "<h1>Error codes</h1><table><thead><tr><th>Code</th><th>Status</th><th>What it says</th><th>What to do</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table></body></html>"
    )


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201 (its output is the page)
