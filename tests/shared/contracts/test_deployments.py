"""Settings of an engine: what they may be. They become arguments of a program."""

from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from shared.contracts.deployments import DeploySpec, Tuning, unfollowed

GOOD: dict[str, Any] = {
    "max_context": 4096, "dtype": "bfloat16", "quantization": "compressed-tensors", "gpu_memory_share": 0.5,
    "tensor_parallel": 4, "pipeline_parallel": 1, "tool_parser": "granite-20b-fc",
    "lora": {"sql-2.1": "adapters/sql_v2", "A": "a.b"},
}  # fmt: skip
HOSTILE = (
    "--trust-remote-code", "-x", "a b", "a=b", "a\n", "\na", "a\0", "a;b", "$(id)", "`id`", "{}", '{"name":"x"}', "../a",
    "a/../b", ".a", "a/.b", "/a", "a/", "a//b", "", "ä", "a" * 64, "a,b", "a:b", "%61", "＝", "a\u202eb",
)  # fmt: skip


def test_what_is_given_is_kept_and_the_rest_is_not() -> None:
    tuning = Tuning.model_validate(GOOD)
    assert tuning.kept() == GOOD
    assert Tuning.model_validate_json(tuning.model_dump_json()) == tuning
    assert Tuning(lora={}).kept() == Tuning().kept() == {}
    assert unfollowed("llama_cpp", Tuning(max_context=512, lora={})) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_can_be_an_argument_of_its_own(text: str) -> None:
    values: list[dict[str, Any]] = [{name: text} for name in ("dtype", "quantization", "tool_parser")]
    for value in (*values, {"lora": {text: "a"}}, {"lora": {"a": text}}):
        with pytest.raises(ValidationError):
            Tuning.model_validate(value)


@pytest.mark.parametrize(
    "value",
    [
        {"max_context": 255}, {"max_context": 10_000_001}, {"max_context": "4096"}, {"max_context": 4096.5},
        {"max_context": True}, {"gpu_memory_share": 0.99}, {"gpu_memory_share": 0.05}, {"gpu_memory_share": "0.5"},
        {"gpu_memory_share": float("nan")}, {"tensor_parallel": 0}, {"tensor_parallel": 65}, {"pipeline_parallel": -1},
        {"lora": {"a/b": "a"}}, {"lora": {str(count): "a" for count in range(17)}}, {"lora": ["a"]}, {"lora": {"a": None}},
        {"trust_remote_code": True}, {"": 1},
    ],
)  # fmt: skip
def test_bounds_and_unknown_settings(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Tuning.model_validate(value)


def test_a_job_of_before_there_were_settings_has_none() -> None:
    one = str(UUID(int=1))
    config = {"concurrent_requests": 1, "avg_sequence_length": 1, "avg_context_length": 1}
    old = {"endpoint_id": one, "project_id": one, "name": "n", "model_id": one, "cluster_id": one, "config": config}
    assert DeploySpec.model_validate({**old, "generation": 1}).tuning.given == []
