"""The reader of PromQL by which the dashboard and the alerts are checked."""

import pytest

from tests.e2e.promql import series


def test_series_and_labels_are_found_wherever_they_stand() -> None:
    expression = 'sum by (route) (rate(a_total{state="x, y(", kind=~"b"}[5m])) / on (route) max(b) > 0.05 and c{d!=""}'
    assert series(expression) == {
        "a_total": {"state", "kind", "route"}, "b": {"route"}, "c": {"d", "route"},
    }  # fmt: skip


@pytest.mark.parametrize("broken", ["sum(a", "unheard(a)", "a{b", "sum by a", "max(b))"])
def test_what_is_not_understood_is_refused(broken: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        series(broken)
