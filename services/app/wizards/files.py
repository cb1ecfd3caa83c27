"""Uploaded files of a draft: sealed before they are stored, opened when the trigger needs them."""

import base64
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from services.app.wizards.tables import WorkflowRow
from shared.http.multipart import UploadedFile
from shared.security.envelope import Keyring, Sealed


def seal(
    keyring: Keyring, workflow_id: UUID, files: Mapping[str, UploadedFile | None], facts: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The files as a draft keeps them: `{field: {name, size, sha256, sealed}}` and what their check has found out.

    One that is None is not kept.
    """
    kept: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        if file is not None:
            sealed = base64.b64encode(keyring.seal(file.content, context_of(workflow_id, name))).decode()
            shown = {"name": file.name, "size": file.size, "sha256": file.sha256}
            kept[name] = {**facts.get(name, {}), **shown, "sealed": sealed}
    return kept


def without_content(files: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What stays when nobody will open them again: their names, sizes and digests."""
    return {name: {**file, "sealed": None} for name, file in files.items()}


def open_file(keyring: Keyring, workflow: WorkflowRow, name: str) -> bytes:
    sealed = Sealed(base64.b64decode(workflow.files[name]["sealed"]))
    return keyring.open(sealed, context_of(workflow.id, name))


def open_files(keyring: Keyring, workflow: WorkflowRow) -> dict[str, bytes]:
    """All whose content is still kept."""
    return {name: open_file(keyring, workflow, name) for name, file in workflow.files.items() if file["sealed"]}


def context_of(workflow_id: UUID, name: str) -> str:
    """What the seal is bound to, so that it opens nowhere else."""
    return f"workflow:{workflow_id}:{name}"
