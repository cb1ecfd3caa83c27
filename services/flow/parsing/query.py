"""JMESPath with bounds. Runs in a child process: a short expression can double a value with each of its steps."""

import json
from collections.abc import Callable, Iterable

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import JsonValue

from services.flow.parsing.messages import MAX_DEPTH, MAX_RESULT, Found, Query
from services.flow.texts import clean
from shared.jobs.outcomes import Permanent


def search(query: Query, progress: Callable[[float | None, str], None]) -> Found:
    """Raises Permanent: `bad_expression`, `too_large`."""
    try:
        found = jmespath.search(query.expression, query.value)
    except JMESPathError as error:
        raise Permanent("bad_expression", f"The expression does not work: {_words(error)}") from None
    except RecursionError:
        raise Permanent("bad_expression", "The expression is nested too deeply.") from None
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as error:
        raise Permanent("bad_expression", f"The expression does not fit the value: {_words(error)}") from None
    return Found(result=_plain(found))


def _plain(found: object) -> JsonValue:
    """The result as JSON. It may share parts with itself many times over, so it is measured while it is written."""
    _check_depth(found)
    parts, size = [], 0
    try:
        for part in json.JSONEncoder(ensure_ascii=False, allow_nan=False).iterencode(found):
            parts.append(part)
            size += len(part)
            if size > MAX_RESULT:
                raise Permanent("too_large", f"The result is larger than {MAX_RESULT // 1024**2} MiB.")
    except (TypeError, ValueError):
        raise Permanent("bad_expression", "The result is not JSON: it is an expression or no finite number.") from None
    result: JsonValue = json.loads("".join(parts))
    return result


def _check_depth(found: object) -> None:
    """Level by level, each part once in a level: recursion would go through shared parts again and again."""
    level = [found]
    for _ in range(MAX_DEPTH):
        below = [part for item in level for part in _parts(item)]
        if not below:
            return
        level = list({id(item): item for item in below}.values())
    raise Permanent("too_large", f"The result is nested deeper than {MAX_DEPTH} levels.")


def _parts(item: object) -> Iterable[object]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _words(error: Exception) -> str:
    return clean(" ".join(str(error).split()))[:300].rstrip(".") + "."
