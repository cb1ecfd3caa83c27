"""Names of task types, which people spell in many ways: `Web.ExtractText` is `web.extract_text` is `web-extract-text`."""

import re
from collections.abc import Mapping
from functools import lru_cache

from stepway.tasks import TaskType

HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
SEPARATORS = re.compile(r"[_\-\s]+")
ONE_WORD = {"open_ai": "openai", "for_each": "foreach", "sub_workflow": "subworkflow"}


def canonical_name(spelled: str) -> str:
    """The name in the form `family.action`, in lower case. It says nothing about whether there is such a type."""
    words = [SEPARATORS.sub("_", HUMP.sub("_", word)).strip("_").lower() for word in spelled.strip().split(".")]
    return ".".join(ONE_WORD.get(word, word) for word in words)


def find(types: Mapping[str, TaskType], spelled: str) -> TaskType | None:
    """The type that is meant by a name. `types` by their own names."""
    exact = types.get(spelled) or types.get(canonical_name(spelled))
    if exact is not None:
        return exact
    letters = _letters(spelled)
    return next((one for name, one in types.items() if letters and _letters(name) == letters), None)


def same_name(one: str, other: str) -> bool:
    """Whether two spellings differ in case and separators only."""
    return one == other or (_letters(one) == _letters(other) != "")


@lru_cache(maxsize=1024)
def _letters(spelled: str) -> str:
    return re.sub(r"[._\-\s]+", "", spelled).casefold() if spelled.isascii() else spelled
