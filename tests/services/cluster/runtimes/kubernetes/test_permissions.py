from itertools import product
from typing import Any

import yaml

from services.cluster.runtimes.kubernetes.permissions import NAMESPACE, NEEDED, OPTIONAL
from shared.contracts.clusters import Permission
from tests.testbed.kube import ACCESS

DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(ACCESS.read_text()))


def granted(kind: str, namespace: str | None) -> list[Permission]:
    (role,) = (one for one in DOCUMENTS if one["kind"] == kind)
    return [
        Permission(verb=verb, resource=resource, group=group, namespace=namespace, name=name)
        for rule in role["rules"]
        for group, resource, name, verb in product(
            rule["apiGroups"], rule["resources"], rule.get("resourceNames", [None]), rule["verbs"]
        )
    ]


def test_the_manifest_grants_what_is_needed_and_no_more() -> None:
    given = granted("Role", NAMESPACE) + granted("ClusterRole", None)
    assert sorted(map(str, given)) == sorted(map(str, (*NEEDED, *OPTIONAL)))


def test_nothing_is_named_twice_or_by_a_wildcard() -> None:
    names = [str(one) for one in (*NEEDED, *OPTIONAL)]
    assert len(names) == len(set(names))
    assert "*" not in "".join(names)


def test_everything_of_the_manifest_is_named_for_us_and_bound_to_one_account() -> None:
    for document in DOCUMENTS:
        assert document["metadata"]["name"] in (NAMESPACE, "stepway-token")
        assert document["metadata"].get("namespace", NAMESPACE) == NAMESPACE
        subjects = document.get("subjects", [])
        assert subjects in ([], [{"kind": "ServiceAccount", "name": NAMESPACE, "namespace": NAMESPACE}])
