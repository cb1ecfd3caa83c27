"""The page at `/` and the OpenAPI document."""

import re
from collections import Counter
from html.parser import HTMLParser
from typing import Annotated, Any

import httpx
import jsonschema
import pytest
from pydantic import BaseModel, Field
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
from workflows.resource import ResourceConfig

from stepway.runner import WorkflowServer
from stepway.runner.api.page import drawing
from tests.stepway.runner.api.conftest import served


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


async def answer(server: WorkflowServer, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app), base_url="http://localhost") as http:
        return await http.get(path)


async def test_the_page_links_to_each_flow_and_to_nothing_outside() -> None:
    server = served()
    page = await answer(server, "/")
    found = Links()
    found.feed(page.text)
    assert found.tags["svg"] == len(server.runs.served)
    assert "script" not in found.tags
    assert {f"workflows/{name}/schema" for name in server.runs.served} <= set(found.links)
    for link in found.links:
        assert (await answer(server, f"/{link}")).status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    await server.stop()


async def test_names_are_escaped() -> None:
    class Flow(Workflow):
        @step
        async def step_one(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    server = WorkflowServer()
    server.add_workflow("<script>alert(1)<'\"&script>", Flow())
    page = await answer(server, "/")
    assert "<script" not in page.text
    assert "&lt;script&gt;" in page.text
    await server.stop()


def test_a_graph_with_circles_is_drawn() -> None:
    nodes = [{"id": name, "label": f"{name}<b>", "node_type": "step"} for name in "abcd"]
    edges = [{"source": a, "target": b} for a, b in ("ab", "ba", "cc", "ad", "da", "xa")]
    drawn = drawing({"nodes": nodes, "edges": edges})
    assert drawn.count("<rect") == 4
    assert drawn.count("marker-end") == 5
    assert "<b>" not in drawn
    assert len(set(re.findall(r'<rect x="(\d+)" y="(\d+)"', drawn))) == 4


def test_an_empty_graph_is_drawn() -> None:
    assert drawing({"nodes": [], "edges": []}).startswith("<svg")


async def test_openapi_has_each_flows_own_start_event() -> None:
    server = served()
    document = (await answer(server, "/openapi.json")).json()
    body = document["paths"]["/workflows/add/run"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["start_event"]["required"] == ["numbers"]
    jsonschema.validate({"start_event": {"numbers": [1]}}, body)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"start_event": {"numbers": []}}, body)
    await server.stop()


class Inner(BaseModel):
    word: str


class Outer(StartEvent):
    inner: Inner
    odd: Any = None


class Secret(BaseModel):
    password: str = Field()


async def test_openapi_references_lead_somewhere() -> None:
    class Flow(Workflow):
        @step
        async def only(self, ev: Outer) -> StopEvent:
            return StopEvent()

    server = WorkflowServer()
    server.add_workflow("with spaces", Flow())
    text = (await answer(server, "/openapi.json")).text
    document = (await answer(server, "/openapi.json")).json()
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert reference in document["components"]["schemas"]
    assert "with_spaces.Inner" in document["components"]["schemas"]
    await server.stop()


async def test_the_graph_does_not_tell_what_resources_hold(tmp_path: Any) -> None:
    held = tmp_path / "secret.json"
    held.write_text('{"password": "hunter2"}')

    class Flow(Workflow):
        @step
        async def only(
            self, ev: StartEvent, secret: Annotated[Secret, ResourceConfig(config_file=str(held))]
        ) -> StopEvent:
            return StopEvent()

    server = WorkflowServer()
    server.add_workflow("secret", Flow())
    graph = await answer(server, "/workflows/secret/representation")
    assert "resource_config" in graph.text
    assert "hunter2" not in graph.text
    assert "secret.json" not in graph.text
    await server.stop()


async def test_fields_without_a_schema_do_not_hide_the_others() -> None:
    class Opaque:
        pass

    class Start(StartEvent):
        opaque: Opaque | None = None
        number: int = 0

    class Flow(Workflow):
        @step
        async def only(self, ev: Start) -> StopEvent:
            return StopEvent()

    server = WorkflowServer()
    server.add_workflow("opaque", Flow())
    schema = (await answer(server, "/workflows/opaque/schema")).json()
    assert schema["start"]["properties"]["number"]["type"] == "integer"
    assert "opaque" in schema["start"]["properties"]
    assert (await answer(server, "/")).status_code == 200
    await server.stop()
