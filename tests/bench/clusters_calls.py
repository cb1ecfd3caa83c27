"""What Stepway asks of an API server, by that server's own audit log: one line per request of its account."""

import json
from collections import Counter
from pathlib import Path

import yaml

_ACCOUNT = "system:serviceaccount:stepway:stepway"
_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [_ACCOUNT]}, {"level": "None"}],
}


class Calls:
    """`flags` are for the API server, whose log lies in `folder`."""

    def __init__(self, folder: Path) -> None:
        policy = folder / "audit-policy.yaml"
        policy.write_text(yaml.safe_dump(_POLICY))
        self._log = folder / "audit.log"
        self._log.touch()
        self._read = 0
        self.flags = (f"--audit-policy-file={policy}", f"--audit-log-path={self._log}", "--audit-log-maxsize=1000")

    def since(self) -> Counter[str]:
        """The requests since this was asked last, by verb and resource: `patch deployments`."""
        counted: Counter[str] = Counter()
        with self._log.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._read += len(line)
                event = json.loads(line)
                if event["verb"] != "watch" or event["stage"] == "ResponseStarted":  # that has a line at its end too
                    counted[_name(event)] += 1
        return counted


def _name(event: dict[str, object]) -> str:
    reference = event.get("objectRef")
    resource = reference.get("resource") if isinstance(reference, dict) else None
    tried = "dryRun" in str(event["requestURI"])
    return f"{event['verb']}{' (tried)' if tried else ''} {resource or event['requestURI']}"
