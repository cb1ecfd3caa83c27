"""Asks the person at the terminal, or reads the lines of a script on standard input. Questions go to stderr."""

import getpass
import sys

from stepway.cli.output import Printer, clean
from stepway.cli.problems import Usage


def line(question: str) -> str:
    """The next line. `Usage` when the input has ended."""
    sys.stderr.write(clean(question))
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not sys.stdin.isatty():
        sys.stderr.write("\n")
    if answer == "":
        raise Usage(f"The input ended where an answer was expected: {question.strip().rstrip(':')}")
    return answer.strip()


def secret(question: str) -> str:
    """A line that is not shown while it is typed."""
    if not sys.stdin.isatty():
        return line(question)
    return getpass.getpass(clean(question), stream=sys.stderr).strip()


def confirm(question: str, *, default: bool) -> bool:
    while True:
        answer = line(f"{question} [{'Y/n' if default else 'y/N'}]: ").lower()
        if not answer:
            return default
        if answer in ("y", "yes", "n", "no"):
            return answer in ("y", "yes")


def confirm_change(out: Printer, question: str, *, sure: bool) -> None:
    """Goes on only when the person agrees; a script says `--yes`."""
    if sure:
        return
    if not sys.stdin.isatty():
        raise Usage("This cannot be taken back: confirm it with --yes.")
    if not confirm(question, default=False):
        raise Usage("Nothing has been changed.")
