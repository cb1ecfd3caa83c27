"""What a violated constraint means to the caller."""

from psycopg.errors import ForeignKeyViolation
from sqlalchemy.exc import IntegrityError

from shared.errors import Problem

# the name of the constraint: (code, sentence, parameter)
_MEANINGS = {
    "uq_model_name": ("name_taken", "A model of this name exists already.", "name"),
    "uq_cluster_name": ("name_taken", "A cluster of this name exists already.", "name"),
    "uq_cluster_uid": ("cluster_known", "This cluster is registered already.", "configuration_file"),
    "uq_endpoint_slug": ("name_taken", "An endpoint of this name exists already in the project.", "endpoint_name"),
    "uq_scan_live": ("scan_in_progress", "A scan of this model is running.", "model_id"),
    "uq_project_name": ("name_taken", "A project of this name exists already.", "name"),
    "uq_template_name": ("name_taken", "A template of this name exists already.", "name"),
    "uq_credential_name": ("name_taken", "You have a credential of this name already.", "name"),
    "uq_user_name": ("name_taken", "A user of this name exists already.", "name"),
}


def constraint_of(error: IntegrityError) -> str | None:
    diagnosis = getattr(error.orig, "diag", None)
    return getattr(diagnosis, "constraint_name", None)


def problem_of_constraint(error: IntegrityError) -> Problem:
    """The problem of a known constraint; the error itself when it is not known."""
    meaning = _MEANINGS.get(constraint_of(error) or "")
    if meaning is None and _names_what_is_gone(error):
        return Problem("reference_not_found", "Something that this names has just been deleted.")
    if meaning is None:
        raise error
    code, sentence, param = meaning
    return Problem(code, sentence, param=param)


def _names_what_is_gone(error: IntegrityError) -> bool:
    """A foreign key of what is being written, rather than one that keeps something from being deleted."""
    is_deletion = (error.statement or "").lstrip().upper().startswith("DELETE")
    return isinstance(error.orig, ForeignKeyViolation) and not is_deletion
