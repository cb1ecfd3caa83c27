"""Workers that a cluster's API server or an ingress stands before: what those say is never taken for a worker's answer.

The API server here is a small HTTPS server that answers as one would. `tests.services.embedded.test_publisher_pods`
asks a real one.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from services.cluster.runtimes.kubernetes.client import KubernetesClient
from services.cluster.runtimes.kubernetes.proxy import ApiServerTransport
from services.gateway.limits import Limits
from services.gateway.table import Route
from services.gateway.table import Worker as Row
from shared.security.kubeconfig import KubeconfigPolicy, parse
from shared.security.kubeconfig_server import ServerPolicy
from tests.services.gateway import worker as does
from tests.services.gateway.conftest import SERVED, UPSTREAM_NAME, Bench, Serve
from tests.services.gateway.worker import CHAT, KEY, TOKENS, chat_event
from tests.testbed.certificates import as_yaml, kubeconfig
from tests.testbed.tls_server import Answer, Handler, Server, http, never, serving, silent, status

LOOPBACK = ServerPolicy(allow_loopback=True)
CLUSTER_TOKEN = "cluster-token-41c8"
POD = "/api/v1/namespaces/stepway/pods/p-1:8080/proxy"
SAID = {"error": {"message": "the prompt is too long", "type": "invalid_request_error"}}


class Proxied:
    """An endpoint's worker behind an API server, published with the bench's own workers."""

    def __init__(self, bench: Bench, server: Server) -> None:
        file = as_yaml(kubeconfig(cluster={"server": server.url}, user={"token": CLUSTER_TOKEN}))
        self.client = KubernetesClient(parse(file, KubeconfigPolicy(addresses=LOOPBACK)), addresses=LOOPBACK)
        self.bench = bench
        self.row = Row(
            id="pod", url=f"{server.url}{POD}", transport=ApiServerTransport(self.client), api_key=SecretStr(KEY),
            capacity=4,
        )  # fmt: skip

    def publish(self, *others: Row) -> None:
        bench = self.bench
        rows = [self.row, *(Row(id=one.id, url=one.url, api_key=SecretStr(KEY)) for one in bench.workers), *others]
        bench.table.replace(bench.endpoint_id, _route(bench, *rows))


def _route(bench: Bench, *rows: Row) -> Route:
    return Route(
        endpoint_id=bench.endpoint_id, project_id=bench.project_id, model_name=UPSTREAM_NAME, served_name=SERVED,
        state="running", workers=rows,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def proxied(bench: Bench, server: Server) -> AsyncIterator[Proxied]:
    made = Proxied(bench, server)
    made.publish()
    try:
        yield made
    finally:
        await made.client.close()


def always(answer: Answer) -> Handler:
    return lambda request: answer


def events(*tokens: str) -> bytes:
    return b"".join(chat_event(token) for token in tokens) + b"data: [DONE]\n\n"


async def ask(bench: Bench, *, stream: bool = False) -> httpx.Response:
    async with bench.http as client:
        return await client.post("/chat/completions", json={**CHAT, "stream": stream})


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def refused(code: int, message: str = 'pods "p-1" is forbidden: User "system:serviceaccount:stepway" may not') -> bytes:
    return http({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message}, code)


FAULTS: dict[str, Answer] = {
    "401": refused(401, "Unauthorized"),
    "403": refused(403),
    "404": refused(404, 'pods "p-1" not found'),
    "500": status(500),
    "503 refused": refused(503, "error trying to reach service: dial tcp 10.0.0.7:8080: connect: connection refused"),
    "503 no endpoints": refused(503, "no endpoints available for service"),
    "429 of priority and fairness": http(b"Too many requests, please try again later.", 429, Content_Type="text/plain"),
    "404 of a balancer": http(b"<html>404</html>", 404, Content_Type="text/html"),
    "502 of a balancer": http(b"<html>502</html>", 502, Content_Type="text/html"),
    "redirect": http(b"", 302, Location="https://elsewhere.example/"),
    "page": http(b"<html>log in</html>", 200, Content_Type="text/html"),
    "hangs up": hang_up,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_another_worker_answers(serve: Serve, fault: str, stream: bool) -> None:
    bench = await serve()
    good = await bench.worker()
    async with serving(always(FAULTS[fault])) as server, proxied(bench, server):
        response = await ask(bench, stream=stream)
    assert response.status_code == 200
    assert len(server.requests) >= 1
    assert len(good.seen) == 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_client_is_told_nothing_of_the_cluster(serve: Serve, fault: str) -> None:
    bench = await serve()
    async with serving(always(FAULTS[fault])) as server, proxied(bench, server):
        with capture_logs() as logs:
            response = await ask(bench)
    said = response.json()["error"]
    assert (response.status_code, said["code"]) in {(503, "endpoint_unavailable"), (502, "worker_failed")}
    assert said["message"].startswith("The worker ")
    for word in ("10.0.0.7", "serviceaccount", "p-1", "Status", "html", "please", "127.0.0.1", CLUSTER_TOKEN, KEY):
        assert word not in response.text
    assert CLUSTER_TOKEN not in json.dumps(logs, default=str)
    assert KEY not in json.dumps(logs, default=str)


async def test_the_operator_reads_why_in_the_log(serve: Serve) -> None:
    bench = await serve()
    async with serving(always(FAULTS["403"])) as server, proxied(bench, server):
        with capture_logs() as logs:
            await ask(bench)
    assert any(line.get("worker") == "pod" and "may not" in line["error"] for line in logs)


async def test_a_workers_own_refusal_is_the_clients(serve: Serve) -> None:
    bench = await serve()
    good = await bench.worker()
    async with serving(always(http(SAID, 400))) as server, proxied(bench, server):
        response = await ask(bench)
    assert (response.status_code, response.json()["error"]["message"]) == (400, "the prompt is too long")
    assert good.seen == []


async def test_the_worker_gets_its_key_and_the_server_the_clusters(serve: Serve) -> None:
    bench = await serve()
    answer = http(events(*TOKENS), Content_Type="text/event-stream")
    async with serving(always(answer)) as server, proxied(bench, server):
        response = await ask(bench, stream=True)
    assert response.content == events(*TOKENS)
    (seen,) = server.requests
    assert (seen.method, seen.target) == ("POST", f"{POD}/v1/chat/completions")
    assert (seen.headers["authorization"], seen.headers["x-api-key"]) == (f"Bearer {CLUSTER_TOKEN}", KEY)
    assert json.loads(seen.body)["model"] == UPSTREAM_NAME
    assert bench.key not in str(seen)


async def test_tokens_come_one_by_one_and_a_client_that_goes_ends_it_all(serve: Serve) -> None:
    bench = await serve()
    left = asyncio.Event()

    async def one_token(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\n\r\n" + chat_event("one "))
        await writer.drain()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        left.set()

    async with serving(always(one_token)) as server, proxied(bench, server), bench.http as client:
        async with client.stream("POST", "/chat/completions", json={**CHAT, "stream": True}) as answer:
            assert await anext(answer.aiter_bytes()) == chat_event("one ")
            assert not left.is_set()
        async with asyncio.timeout(10):
            await left.wait()
    assert (await bench.used()).error == "client_closed"


async def test_an_answer_that_breaks_off_is_an_error_event(serve: Serve) -> None:
    async def half(writer: asyncio.StreamWriter) -> None:
        part = chat_event("one ")
        head = b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()

    bench = await serve()
    async with serving(always(half)) as server, proxied(bench, server):
        response = await ask(bench, stream=True)
    first, last = [part for part in response.text.split("\n\n") if part]
    assert first.encode() == chat_event("one ").strip()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "worker_failed"


async def test_a_server_that_says_nothing_holds_up_its_own_requests_only(serve: Serve) -> None:
    bench = await serve(Limits(connect_seconds=0.3))
    other, local = uuid4(), await bench.worker()
    bench.keys.grant(bench.key, other)
    async with silent() as server, proxied(bench, server) as pod:
        bench.table.replace(other, _route(bench, pod.row).model_copy(update={"endpoint_id": other}))
        async with httpx.AsyncClient(headers=bench.http.headers, timeout=20, trust_env=False) as client:
            hung = asyncio.create_task(client.post(f"{bench.base}/endpoints/{other}/v1/chat/completions", json=CHAT))
            assert (await ask(bench)).status_code == 200
            assert (await hung).json()["error"]["message"] == "The worker could not be reached in time."
    assert len(local.seen) == 1


async def test_a_server_that_never_answers_is_given_up_in_time(serve: Serve) -> None:
    bench = await serve(Limits(first_byte_seconds=0.3))
    async with serving(always(never)) as server, proxied(bench, server):
        response = await ask(bench, stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "worker_timeout")


async def test_a_connection_that_was_closed_is_no_fault_of_ours(serve: Serve) -> None:
    """The cluster is gone, and the table does not know yet."""
    bench = await serve()
    async with serving(always(http(SAID, 400))) as server, proxied(bench, server) as pod:
        assert (await ask(bench)).status_code == 400
        await pod.client.close()
        response = await ask(bench)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "endpoint_unavailable")
    assert len(server.requests) == 1


async def test_an_url_that_is_not_the_clusters_gets_none_of_its_credentials(serve: Serve) -> None:
    bench = await serve()
    answer = always(http(SAID, 400))
    async with serving(answer) as elsewhere, serving(answer) as server, proxied(bench, server) as pod:
        row = pod.row.model_copy(update={"url": f"{elsewhere.url}{POD}"})
        bench.table.replace(bench.endpoint_id, _route(bench, row))
        response = await ask(bench)
    assert response.json()["error"]["code"] == "endpoint_unavailable"
    assert elsewhere.requests == server.requests == []


async def test_a_new_way_to_a_worker_is_tried_at_once(serve: Serve) -> None:
    """Its cluster's credentials were revoked, and then replaced."""
    answers: list[Callable[[], Answer]] = [lambda: refused(401), lambda: http(SAID, 400)]
    bench = await serve(Limits(out_seconds=600, out_max_seconds=600))
    async with serving(lambda request: answers.pop(0)()) as server:
        async with proxied(bench, server) as before:
            assert (await ask(bench)).status_code == 503
            before.publish()
            assert (await ask(bench)).status_code == 503  # known to be out: it is not asked
            assert len(server.requests) == 1
        async with proxied(bench, server):
            assert (await ask(bench)).status_code == 400


# --- ingress


async def test_an_ingress_is_asked_by_the_workers_host(serve: Serve) -> None:
    bench = await serve()
    ingress = await bench.worker()
    row = Row(id="pod", url=ingress.url, host="smol.endpoints.example", api_key=SecretStr(KEY))
    bench.table.replace(bench.endpoint_id, _route(bench, row))
    assert (await ask(bench, stream=True)).status_code == 200
    (seen,) = ingress.seen
    assert (seen.headers["host"], seen.headers["authorization"]) == ("smol.endpoints.example", f"Bearer {KEY}")


async def test_the_page_of_an_ingress_is_no_answer(serve: Serve) -> None:
    bench = await serve()
    ingress = await bench.worker(does.refuse(404, b"default backend - 404", kind="text/plain"))
    good = await bench.worker()
    behind = Row(id="pod", url=ingress.url, host="smol.endpoints.example", api_key=SecretStr(KEY))
    direct = Row(id="direct", url=good.url, api_key=SecretStr(KEY))
    bench.table.replace(bench.endpoint_id, _route(bench, behind, direct))
    assert (await ask(bench)).status_code == 200
    bench.table.replace(bench.endpoint_id, _route(bench, behind))
    response = await ask(bench)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "endpoint_unavailable")
    assert "default backend" not in response.text


@pytest.mark.parametrize("host", ["", "a b", "a\r\nX-Evil: 1", "a/b", "user@a", "-a"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ValidationError):
        Row(id="w", url="http://127.0.0.1:9", host=host)


def test_a_transport_is_not_shown() -> None:
    row = Row(id="w", url="http://127.0.0.1:9", transport=httpx.AsyncHTTPTransport())
    assert "transport" not in repr(row) + row.model_dump_json()
