"""Conditions: whether a task runs. Values, never code: nothing here can loop or call.

    true | false | "{{refs.check.output.ok}}"                         a reference to a boolean
    {"left": …, "op": "gt", "right": …}                               eq ne lt le gt ge in contains
    {"left": "{{refs.check.output.note}}", "op": "exists"}            whether there is something other than null
    {"all": [ … ]}   {"any": [ … ]}   {"not": … }                     from left to right, no further than needed

`left` and `right` are values with references. eq and ne compare any two values as JSON (true is not 1); lt le gt ge compare
two numbers or two texts; `in` looks for the left one in a list, for a text in a text, for a name in an object, and
`contains` is the same the other way round. Null is no boolean and has no order: ask `exists` first, within `all`.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from shared.flows import plain
from shared.flows.faults import Faults, member
from shared.flows.plain import Json
from shared.flows.references import ReferenceFault, Template, Use, ValueFault, compile_plain

MAX_DEPTH = 8
MAX_PARTS = 100  # of one `all` or `any`
ORDERS: dict[str, Callable[[Json, Json], bool]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
OPERATORS = ("eq", "ne", *ORDERS, "in", "contains", "exists")
FORMS = (
    "A condition is true, false, one reference to a boolean, an object with `left`, `op` and `right`, "
    "or an object with one of `all`, `any`, `not`."
)


class ConditionFault(ValueFault):
    """A condition is neither true nor false with these values. `path`: which part of it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    path: str
    op: str
    left: Template
    right: Template | None  # None for `exists`


@dataclass(frozen=True, slots=True)
class Group:
    how: Literal["all", "any", "not"]
    parts: tuple["Condition", ...]


Condition = bool | Template | Comparison | Group


def compile_condition(condition: Json, path: str, faults: Faults, depth: int = 1) -> Condition:
    """Parse a condition once; None is true. `condition` is plain JSON. What is wrong with it is added to `faults`."""
    if condition is None or type(condition) is bool:
        return condition is not False
    if type(condition) is str:
        template = compile_plain(condition, path, faults)
        if len(template.uses) == 1 and template.uses[0].whole:
            return template
        if "{{" not in condition or template.uses:  # else its braces have been told already
            faults.add(path, "bad_condition", f"This text is not one whole reference. {FORMS}")
        return True
    if type(condition) is not dict:
        faults.add(path, "bad_condition", FORMS)
        return True
    if depth > MAX_DEPTH:
        faults.add(path, "too_deep", f"Conditions may be nested {MAX_DEPTH} deep; use fewer levels.")
        return True
    names = set(condition)
    if len(names) == 1 and names <= {"all", "any", "not"}:
        return _group(condition, path, faults, depth)
    if {"left", "op"} <= names <= {"left", "op", "right"}:
        return _comparison(condition, path, faults)
    faults.add(path, "bad_condition", FORMS)
    return True


def evaluate(condition: Condition | Json, values: Mapping[str, Json], path: str = "condition") -> bool:
    """Whether a condition holds. Raises nothing but `ConditionFault`. `values` as for `Template.resolve`."""
    if not isinstance(condition, bool | Template | Comparison | Group):
        faults = Faults()
        if fault := plain.problem(condition, path):
            raise ConditionFault(fault.path, fault.message)
        condition = compile_condition(condition, path, faults)
        if faults.found:
            raise ConditionFault(faults.found[0].path, faults.found[0].message)
    try:
        return _holds(condition, values)
    except ReferenceFault as error:
        raise ConditionFault(error.path, error.what, error.reference) from None


def leaves(condition: Condition) -> Iterator[Template | Comparison]:
    """What a condition looks at: whole references and comparisons."""
    if isinstance(condition, Group):
        for part in condition.parts:
            yield from leaves(part)
    elif not isinstance(condition, bool):
        yield condition


def uses(condition: Condition) -> Iterator[Use]:
    """The references in a condition."""
    for leaf in leaves(condition):
        for template in (leaf,) if isinstance(leaf, Template) else (leaf.left, leaf.right):
            if template is not None:
                yield from template.uses


def _group(condition: dict[str, Json], path: str, faults: Faults, depth: int) -> Condition:
    how, given = next(iter(condition.items()))
    at = member(path, how)
    if how == "not":
        if given is None:
            faults.add(at, "bad_condition", FORMS)
        return Group("not", (compile_condition(given, at, faults, depth + 1),))
    if type(given) is not list or not 1 <= len(given) <= MAX_PARTS or None in given:
        faults.add(at, "bad_condition", f"`{how}` takes a list of 1 to {MAX_PARTS} conditions.")
        return True
    parts = tuple(compile_condition(one, f"{at}[{index}]", faults, depth + 1) for index, one in enumerate(given))
    return Group("all" if how == "all" else "any", parts)


def _comparison(condition: dict[str, Json], path: str, faults: Faults) -> Condition:
    op = condition["op"]
    if type(op) is not str or op not in OPERATORS:
        hint = faults.nearest(op, OPERATORS) if type(op) is str else ""
        faults.add(member(path, "op"), "bad_condition", f"`op` must be one of {', '.join(OPERATORS)}.{hint}")
        return True
    left = compile_plain(condition["left"], member(path, "left"), faults)
    if op == "exists":
        if "right" in condition:
            faults.add(member(path, "right"), "bad_condition", "`exists` takes no `right`; leave it out.")
        if not (len(left.uses) == 1 and left.uses[0].whole and type(condition["left"]) is str):
            faults.add(left.path, "bad_condition", "`exists` takes one whole reference as `left`.")
        return Comparison(path, op, left, None)
    if "right" not in condition:
        faults.add(path, "bad_condition", f"Give `right`, which `{op}` compares with.")
        return True
    return Comparison(path, op, left, compile_plain(condition["right"], member(path, "right"), faults))


def _holds(condition: Condition, values: Mapping[str, Json]) -> bool:
    if isinstance(condition, bool):
        return condition
    if isinstance(condition, Comparison):
        return _compare(condition, values)
    if isinstance(condition, Group):
        results = (_holds(part, values) for part in condition.parts)
        if condition.how == "not":
            return not next(results)
        return all(results) if condition.how == "all" else any(results)
    value = condition.resolve(values)
    if type(value) is not bool:
        what = f"is {_kind(value)}, and a condition must be true or false."
        raise ConditionFault(condition.path, what, condition.references[0])
    return value


def _compare(one: Comparison, values: Mapping[str, Json]) -> bool:
    if one.right is None:
        try:
            return one.left.resolve(values) is not None
        except ReferenceFault:
            return False
    left, right = one.left.resolve(values), one.right.resolve(values)
    try:
        if one.op in ("eq", "ne"):
            return plain.same(left, right) == (one.op == "eq")
        if one.op in ORDERS:
            if plain.type_of(left) == plain.type_of(right) and plain.type_of(left) in ("number", "text"):
                return ORDERS[one.op](left, right)
            raise ConditionFault(
                one.path, f"`{one.op}` compares {_kind(left)} with {_kind(right)}; it takes two numbers or two texts."
            )
        return _is_in(left, right, one) if one.op == "in" else _is_in(right, left, one)
    except RecursionError:
        raise ConditionFault(one.path, "The values are nested too deeply to be compared.") from None


def _is_in(item: Json, holder: Json, one: Comparison) -> bool:
    if type(holder) is list:
        return any(plain.same(item, other) for other in holder)
    if type(item) is str and (type(holder) is str or type(holder) is dict):
        return item in holder
    raise ConditionFault(
        one.path,
        f"`{one.op}` looks for {_kind(item)} in {_kind(holder)}; it takes a list, or a text in a text or an object.",
    )


def _kind(value: Json) -> str:
    kind = plain.type_of(value)
    return "null" if kind is None else f"an {kind}" if kind == "object" else f"a {kind}"
