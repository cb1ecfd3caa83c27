"""LiteLLM on a cluster: a proxy to a model that somebody else serves, with the credential from a Secret.

The configuration names variables, never values; each parameter of the credential is a secret of the workload under
its own name (`secret_name`).
"""

import math
import re

import yaml

from services.cluster.engines.base import CloudModel, ContainerPlan, DeployConfig, Unsupported, check_tuning
from services.cluster.engines.images import Images
from services.cluster.runtimes.containers import API_KEY, FILES, Container, Probes, Resources
from shared.contracts.deployments import UNTUNED, Tuning

PORT = 4000
_CONFIG = "config.yaml"
_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,39}")
_NEVER = frozenset({"model", "custom_llm_provider", "mock_response", "callbacks", "success_callback"})
_MAX_CONCURRENCY = 200  # of one worker, which only waits for the other side
_MEMORY = 1536 * 1024**2
_UNKNOWN_CONTEXT = 8192


def secret_name(parameter: str) -> str:
    """The secret of the workload that holds a LiteLLM parameter's value."""
    return f"credential-{parameter.replace('_', '-')}"


class LiteLlm:
    name = "litellm"

    def __init__(self, images: Images) -> None:
        self._images = images

    def container_plan(self, model: CloudModel, config: DeployConfig, tuning: Tuning = UNTUNED) -> ContainerPlan:
        """Raises Unsupported."""
        check_tuning(self.name, tuning)
        wrong = [name for name in model.parameters if not _PARAMETER.fullmatch(name) or name in _NEVER]
        if wrong:
            raise Unsupported(f"The credential has a field that is no parameter of a connection: {wrong[0][:40]}.")
        replicas = math.ceil(config.concurrent_requests / _MAX_CONCURRENCY)
        embedding = set(model.metadata.modality) == {"embedding"}
        secrets = {_variable(name): secret_name(name) for name in sorted(model.parameters)}
        return ContainerPlan(
            engine=self.name,
            container=Container(
                image=self._images.litellm,
                args=[f"--config={FILES}/{_CONFIG}", f"--port={PORT}", "--host=0.0.0.0", "--num_workers=1"],
                environment={
                    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                    "LITELLM_NON_ROOT": "true",
                    "LITELLM_TELEMETRY": "False",
                    "DISABLE_ADMIN_UI": "True",
                    "NO_DOCS": "True",
                },
                secret_environment={"LITELLM_MASTER_KEY": API_KEY, **secrets},
                files={_CONFIG: _configuration(model)},
                port=PORT,
                probes=Probes(ready_path="/health/readiness", live_path="/health/liveliness", start_seconds=180.0),
                resources=Resources(cpu_millis=250, memory_bytes=_MEMORY),
                stop_grace=120.0,
            ),
            secrets=sorted(secrets.values()),
            replicas=replicas,
            concurrency=math.ceil(config.concurrent_requests / replicas),
            context_tokens=model.metadata.context_length or _UNKNOWN_CONTEXT,
            memory_bytes=_MEMORY,
            threads=1,
            apis=["/v1/embeddings"] if embedding else ["/v1/chat/completions", "/v1/completions"],
        )


def _configuration(model: CloudModel) -> str:
    parameters = {name: f"os.environ/{_variable(name)}" for name in sorted(model.parameters)}
    document = {
        "model_list": [{"model_name": model.name, "litellm_params": {"model": model.uri, **parameters}}],
        "litellm_settings": {"drop_params": True, "telemetry": False, "request_timeout": 600},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }
    return yaml.safe_dump(document, sort_keys=False)


def _variable(parameter: str) -> str:
    return f"STEPWAY_CREDENTIAL_{parameter.upper()}"
