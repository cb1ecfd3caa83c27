"""What is wrong with the path of an archive's member. Used by zip_archive and tar_archive."""

import re

_DRIVE = re.compile(r"[A-Za-z]:")


def fault_of_path(path: str) -> str | None:
    """Why unpacking `path` could write outside of its folder; None if it could not."""
    path = path.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute"
    if ".." in path.split("/"):
        return "leads out of its folder"
    if "\x00" in path:
        return "has a null byte"
    return None
