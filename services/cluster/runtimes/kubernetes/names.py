"""What our objects are called and how they are labelled: the same names at each attempt, so that a repeat finds them.

An object is ours when it says so in its labels, and `owner` is who we are: the id under which this installation knows
the cluster. Another installation may share the cluster and its namespace.
"""

import hashlib

MANAGED_BY = "app.kubernetes.io/managed-by"
COMPONENT = "app.kubernetes.io/component"
OWNER = "stepway/owner"
ENDPOINT = "stepway/endpoint"
JOB = "stepway/job"
GENERATION = "stepway/generation"
TEMPLATE = "stepway/template"
RANK = "stepway/rank"  # of a pod in the group that is its worker
FILLED = "stepway/filled"  # on a claim: the digest of the manifest that it holds
ALL_ENDPOINTS = ""
_LONGEST = 46  # a pod's name adds 17 characters, and a label has room for 63


def base(endpoint_id: str) -> str:
    name = f"ep-{endpoint_id}"
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9].rstrip('-')}-{hashlib.sha256(endpoint_id.encode()).hexdigest()[:8]}"


def claim(endpoint_id: str, digest: str) -> str:
    return f"{base(endpoint_id)}-model-{digest[:8]}"


def load(endpoint_id: str, digest: str) -> str:
    return f"{base(endpoint_id)}-load-{digest[:8]}"


def loader_files(endpoint_id: str, digest: str) -> str:
    return f"{load(endpoint_id, digest)}-files"


def labels(owner: str, endpoint_id: str, component: str) -> dict[str, str]:
    return {
        MANAGED_BY: "stepway",
        "app.kubernetes.io/name": "stepway-endpoint",
        COMPONENT: component,
        OWNER: owner,
        ENDPOINT: endpoint_id,
    }


def selector(owner: str, endpoint_id: str = ALL_ENDPOINTS, component: str = "") -> str:
    parts = {MANAGED_BY: "stepway", OWNER: owner, ENDPOINT: endpoint_id, COMPONENT: component}
    return ",".join(f"{name}={value}" for name, value in parts.items() if value)
