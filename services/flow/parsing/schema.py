"""JSON Schema, by jsonschema. Runs in a child process: a `pattern` can take a regular expression hours.

Nothing is fetched: a `$ref` leads within the schema, or to one of the published drafts.
"""

from collections.abc import Callable
from itertools import islice

from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema_specifications import REGISTRY
from referencing.exceptions import Unresolvable

from services.flow.parsing.messages import MAX_ERRORS, Question, SchemaFault, Verdict
from services.flow.texts import clean
from shared.jobs.outcomes import Permanent

_MAX_MESSAGE = 300  # characters; the library's messages repeat the value


def validate(question: Question, progress: Callable[[float | None, str], None]) -> Verdict:
    """The first `MAX_ERRORS` faults, in the order of the value. Raises Permanent `bad_schema`."""
    kind = validators.validator_for(question.schema_, default=Draft202012Validator)
    try:
        kind.check_schema(question.schema_)
        judge = kind(question.schema_, registry=REGISTRY, format_checker=kind.FORMAT_CHECKER)
        found = list(islice(judge.iter_errors(question.value), MAX_ERRORS))
    except SchemaError as error:
        raise Permanent("bad_schema", f"The schema is wrong at {error.json_path}: {_words(error.message)}.") from None
    except Unresolvable as error:
        message = f"The schema refers to {clean(str(error.ref))[:200]}, which is not in it; nothing is fetched."
        raise Permanent("bad_schema", message) from None
    except RecursionError:
        raise Permanent("bad_schema", "The schema or the value refers to itself without end.") from None
    except MemoryError:
        raise
    except Exception as error:  # regular expressions and numbers that the library trusts
        raise Permanent("bad_schema", f"The schema cannot be used: {_words(str(error))}.") from None
    return Verdict(errors=[_fault(error) for error in found])


def _fault(error: ValidationError) -> SchemaFault:
    return SchemaFault(path=clean(error.json_path)[:500], message=_words(error.message))


def _words(message: str) -> str:
    message = clean(message)
    return (
        message if len(message) <= _MAX_MESSAGE else f"{message[: _MAX_MESSAGE // 2]} … {message[-_MAX_MESSAGE // 2 :]}"
    )
