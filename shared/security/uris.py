"""Is this `uri` one that a model's source could take? Pure syntax, so that a wizard can ask at once, before any job.

A URI is stored, shown and logged: one that holds a credential is refused here, whatever its source.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, urlsplit

from shared.contracts.models import Source
from shared.security.addresses import AddressPolicy, AddressRefused, check_url

MAX_LENGTH = 2048
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?", re.ASCII)
_QUANTIZATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", re.ASCII)
_SECRET = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}",
    re.ASCII,
)
_SECRET_PARAMETERS = re.compile(
    r"(?:.*[-_.])?(?:token|key|apikey|secret|password|passwd|pwd|signature|sig|credential|credentials|auth"
    r"|authorization|(?:aws)?accesskeyid|key-pair-id|accesstoken|sas|policy)",
    re.ASCII | re.IGNORECASE,
)


class InvalidUri(ValueError):
    """A `uri` that no fetch could take. `code` is `invalid_uri` or `credentials_in_uri`; the text is for the user."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class HubUri:
    """A repository of a hub, and what of it: one quantisation, one file, or whatever fits (both None)."""

    repository: str
    quantization: str | None = None
    file: str | None = None


def check_uri(source: Source, uri: str) -> None:
    """Judge the syntax of a model's `uri` for its source. Raises `InvalidUri`; does no input or output."""
    _check_text(uri)
    match source:
        case Source.HUGGING_FACE:
            parse_hub_uri(uri)
        case Source.URL:
            _check_web(uri)
        case Source.DISK:
            _check_path(uri)


def check_revision(revision: str | None) -> None:
    """Judge the syntax of a branch, tag or commit. Raises `InvalidUri`."""
    if revision is None:
        return
    _check_text(revision)
    # what git allows in a name, without what a URL's path could mistake for something else
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}", revision, re.ASCII) or ".." in revision:
        raise InvalidUri("invalid_uri", "The revision is not a branch, a tag or a commit.")


def parse_hub_uri(uri: str) -> HubUri:
    """Read `name`, `organisation/name`, `…:Q4_K_M` or `organisation/name/file.gguf`. Raises `InvalidUri`."""
    _check_text(uri)
    if "://" in uri:
        raise InvalidUri("invalid_uri", "Give the repository as `organisation/name`, not as a URL.")
    body, colon, quantization = uri.partition(":")
    if colon and not _QUANTIZATION.fullmatch(quantization):
        raise InvalidUri("invalid_uri", "After the colon comes the name of a quantisation, such as Q4_K_M.")
    parts = body.split("/")
    names, inner = parts[:2], parts[2:]
    for name in names:
        if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith(".git"):
            raise InvalidUri("invalid_uri", "The repository is not of the form `organisation/name`.")
    if not inner:
        return HubUri("/".join(names), quantization=quantization.upper() or None)
    if colon:
        raise InvalidUri("invalid_uri", "Name either a file or a quantisation, not both.")
    if any(part in ("", ".", "..") for part in inner) or "\\" in body:
        raise InvalidUri("invalid_uri", "The file's path inside the repository is not well formed.")
    if not inner[-1].lower().endswith(".gguf"):
        raise InvalidUri("invalid_uri", "Only a GGUF file can be named; otherwise give the repository alone.")
    return HubUri("/".join(names), file="/".join(inner))


def _check_text(uri: str) -> None:
    if not uri:
        raise InvalidUri("invalid_uri", "The uri is empty.")
    if len(uri) > MAX_LENGTH:
        raise InvalidUri("invalid_uri", f"The uri is longer than {MAX_LENGTH} characters.")
    if uri != uri.strip() or not uri.isprintable():
        raise InvalidUri("invalid_uri", "The uri has blanks at its ends or characters that cannot be printed.")
    if _SECRET.search(uri):
        raise InvalidUri(
            "credentials_in_uri", "The uri holds a secret. Store it as a credential and leave it out here."
        )


def _check_web(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        userinfo = "@" in parts.netloc
    except ValueError:
        raise InvalidUri("invalid_uri", "The URL is not well formed.") from None
    if userinfo:
        raise InvalidUri("credentials_in_uri", "The URL holds a user name or password. Store it as a credential.")
    for text in (parts.query, parts.fragment):
        if any(_SECRET_PARAMETERS.fullmatch(name) for name, _ in parse_qsl(text, keep_blank_values=True)):
            raise InvalidUri(
                "credentials_in_uri", "The URL's query holds a key or a signature, which would be stored and shown."
            )
    try:
        # private addresses are for the policy at the fetch to judge
        check_url(uri, AddressPolicy(allow_private=True))
    except AddressRefused as refused:
        raise InvalidUri("invalid_uri", f"{str(refused).capitalize()}.") from None
    if not PurePosixPath(parts.path).name:
        raise InvalidUri("invalid_uri", "The URL names no file.")


def _check_path(uri: str) -> None:
    if not uri.startswith("/"):
        raise InvalidUri("invalid_uri", "Give the absolute path of the file or folder.")
    if ".." in uri.split("/"):
        raise InvalidUri("invalid_uri", "The path must not hold `..`.")
