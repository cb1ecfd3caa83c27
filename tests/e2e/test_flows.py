"""Flows through a whole installation: the two seeds, byte for byte, from a definition to its end."""

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Make
from tests.e2e.instance import Stepway, until
from tests.openai_server import KEY, OpenAIServer
from tests.serving import Fault, Server, send
from tests.testbed.certificates import Authority

SEEDS = Path(__file__).parents[1] / "contract" / "seeds"
FINAL = ("COMPLETED", "FAILED", "CANCELLED")
PAGE = """<!doctype html><html><head><title>Example</title></head><body><nav>Menu</nav><article><h1>On steam</h1>
<p>A kettle boils water, and the steam that leaves it lifts the lid again and again until somebody takes it away.</p>
<p>Whoever watches for long enough begins to think of engines, of valves, and of how much work a lid could do.</p>
</article></body></html>"""


class Example(Server):
    """Stands in for https://example.com: its page, and a place that takes webhooks."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.told: list[tuple[dict[str, str], Any]] = []
        authority = Authority.make()
        pair = authority.issue("example.com", names=("example.com",))
        (folder / "ca.pem").write_bytes(authority.pair.certificate)
        (folder / "example.pem").write_bytes(pair.certificate + pair.key)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "example.pem")
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.command == "POST":
            self.told.append((dict(request.headers.items()), json.loads(body)))
        send(request, 200, PAGE.encode(), {"Content-Type": "text/html; charset=utf-8"})


@contextmanager
def installation(make: Make, folder: Path) -> Iterator[tuple[Stepway, Example, OpenAIServer]]:
    with Example(folder) as example, OpenAIServer() as openai:
        stepway = make(
            resolve=f"example.com:443:127.0.0.1:{example.port}", outbound_ca=folder / "ca.pem",
            flow_openai_base_url=openai.base_url,
        )  # fmt: skip
        yield stepway.start(), example, openai


@pytest.fixture
def world(make: Make, folder: Path) -> Iterator[tuple[Stepway, Example, OpenAIServer]]:
    with installation(make, folder) as made:
        yield made


def examples(seed: str) -> list[str]:
    """The JSON of a page, as it stands there."""
    return re.findall(r"```json\n(.*?)```", (SEEDS / seed).read_text(), re.DOTALL)


def send_json(stepway: Stepway, path: str, body: str, **headers: str) -> Any:
    return stepway.ask("POST", f"/flow{path}", content=body, headers={"Content-Type": "application/json", **headers})


def ended(stepway: Stepway, path: str) -> Any:
    return until(lambda: (one := stepway.get(f"/flow{path}?wait=10"))["status"] in FINAL and one, what=path)


def test_the_summariser_of_the_seed(world: tuple[Stepway, Example, OpenAIServer]) -> None:
    stepway, example, openai = world
    create, created, execute, executed, shown, listed, with_webhook = examples("data-flow-workflows.md")
    answer = send_json(stepway, "/workflows", create)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert made.keys() == json.loads(created).keys()
    assert re.fullmatch("wf-[a-z0-9]{8}", made["workflow_id"])
    path = f"/workflows/{made['workflow_id']}"
    answer = send_json(stepway, f"{path}/execute", execute, **{"X-Provider-Key": KEY})
    assert answer.status_code == 202, answer.text
    started = answer.json()
    assert started | {"execution_id": ""} == json.loads(executed) | {
        "workflow_id": made["workflow_id"], "execution_id": "",
    }  # fmt: skip
    seen = stepway.get(f"/flow{path}/executions/{started['execution_id']}")
    expected = json.loads(shown)
    assert expected.keys() <= seen.keys()
    assert [one["ref"] for one in seen["tasks"]] == [one["ref"] for one in expected["tasks"]]
    end = ended(stepway, f"{path}/executions/{started['execution_id']}")
    assert end["status"] == "COMPLETED", end
    assert {one["status"] for one in end["tasks"]} == {"COMPLETED"}
    assert "the steam that leaves it" in end["output"]["summary_text"]
    assert openai.asked_for[0].body["model"] == "gpt-3.5-turbo"
    (entry,) = stepway.get(f"/flow{path}/executions")["executions"]
    assert json.loads(listed)["executions"][0].keys() <= entry.keys()
    answer = send_json(stepway, f"{path}/execute", with_webhook, **{"X-Provider-Key": KEY})
    assert answer.status_code == 202, answer.text
    assert ended(stepway, f"{path}/executions/{answer.json()['execution_id']}")["status"] == "COMPLETED"
    until(lambda: any(body["type"] == "execution.completed" for _, body in example.told), what="the webhook")
    assert not any(KEY in one for one in stepway.answers)


def test_the_speech_of_the_quick_start(world: tuple[Stepway, Example, OpenAIServer]) -> None:
    stepway, _, _ = world
    create, created, execute, executed, shown, listed, with_webhook = examples("data-flow-quick-start.md")
    answer = send_json(stepway, "/workflows", create)
    assert answer.status_code == 201, answer.text
    assert json.loads(created).keys() <= answer.json().keys()
    path = f"/workflows/{answer.json()['workflow_id']}"
    for body in (execute, with_webhook):  # they give an input that the flow has not, and not the one that it has
        refused = send_json(stepway, f"{path}/executions", body)
        assert refused.status_code == 400
        assert {one["param"] for one in refused.json()["errors"]} == {"inputs.webpage_url", "inputs.text"}
    answer = stepway.ask(
        "POST", f"/flow{path}/executions", json={"inputs": {"text": "Hello, world!"}}, headers={"X-Provider-Key": KEY}
    )
    assert answer.status_code == 202, answer.text
    started = answer.json()
    assert started.keys() == json.loads(executed).keys()
    assert re.fullmatch("we-[a-z0-9]{8}", started["workflow_execution_id"])
    end = ended(stepway, f"{path}/executions/{started['workflow_execution_id']}")
    assert end["status"] == "COMPLETED", end
    assert json.loads(shown).keys() <= end.keys()
    assert end["tasks"][0]["name"] == "text_to_speech"
    audio = end["outputs"]["audio"]
    downloaded = stepway.ask("GET", audio["href"])
    assert downloaded.status_code == 200
    assert len(downloaded.content) == audio["size"]
    assert downloaded.content.startswith(b"\xff\xfb")
    (entry,) = stepway.get(f"/flow{path}/executions")["executions"]
    assert json.loads(listed)["executions"][0].keys() <= entry.keys()


def test_a_flow_calls_an_endpoint_that_was_deployed(stepway: Stepway, model_file: Path) -> None:
    _, endpoint = stepway.serve(model_file)
    task = {"endpoint": "chat", "prompt": "Say {{input.word}}.", "parameters": {"max_tokens": 8}}
    made = stepway.post("/flow/workflows", {
        "name": "asks", "input": [{"name": "word", "type": "text"}],
        "tasks": [{"ref": "by_name", "type": "LLM.Chat", "input": task},
                  {"ref": "by_id", "type": "llm.chat", "input": {**task, "endpoint": endpoint}}],
        "output": [{"name": name, "type": "text", "value": f"{{{{refs.{name}.output.text}}}}"}
                   for name in ("by_name", "by_id")],
    })  # fmt: skip
    path = f"/workflows/{made['workflow_id']}"
    started = stepway.post(f"/flow{path}/execute", {"input": {"word": "hello"}})
    end = ended(stepway, f"{path}/executions/{started['execution_id']}")
    assert end["status"] == "COMPLETED", end
    assert all(end["output"].values())
    assert stepway.sql("SELECT * FROM platform.api_key WHERE job_id IS NOT NULL") == []
    assert {one["name"] for one in stepway.get("/keys")["data"]} == {"First admin key"}
