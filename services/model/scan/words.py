"""Long lists of names, written as running text."""


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())
