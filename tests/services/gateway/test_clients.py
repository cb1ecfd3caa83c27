"""The openai client against the gateway: it works, and failures arrive as its own exceptions."""

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from services.gateway.limits import Limits
from tests.services.gateway import worker as does
from tests.services.gateway.conftest import SERVED, UPSTREAM_NAME, Serve

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who are you?"}]


async def test_chat(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker()
    answer = await bench.client().chat.completions.create(model=SERVED, messages=ASK, temperature=0.5)
    assert answer.choices[0].message.content == "hello"
    assert worker.seen[0].body == {"messages": ASK, "model": UPSTREAM_NAME, "temperature": 0.5}


async def test_streamed_chat(serve: Serve) -> None:
    bench = await serve()
    await bench.worker()
    stream = await bench.client().chat.completions.create(model=SERVED, messages=ASK, stream=True)
    assert [event.choices[0].delta.content async for event in stream] == does.TOKENS


async def test_completions_and_embeddings(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker()
    client = bench.client()
    assert (await client.completions.create(model=SERVED, prompt="a")).choices[0].text == "done"
    embedded = await client.embeddings.create(model="my-endpoint", input="a", encoding_format="float")
    assert embedded.data[0].embedding == [0.25, -0.5]
    assert [seen.path for seen in worker.seen] == ["/v1/completions", "/v1/embeddings"]
    assert worker.seen[1].body["model"] == UPSTREAM_NAME


async def test_models_come_from_the_table(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker()
    client = bench.client()
    assert [model.id async for model in client.models.list()] == [SERVED]
    assert (await client.models.retrieve(UPSTREAM_NAME)).id == SERVED
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"
    assert worker.seen == []


async def test_a_wrong_key_is_an_authentication_error(serve: Serve) -> None:
    bench = await serve()
    with pytest.raises(openai.AuthenticationError) as caught:
        await bench.client("wrong").models.list()
    assert caught.value.code == "unauthenticated"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


async def test_an_unknown_model_is_a_not_found_error(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker()
    with pytest.raises(openai.NotFoundError) as caught:
        await bench.client().completions.create(model="gpt-4", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert worker.seen == []


async def test_a_worker_s_refusal_keeps_its_class_and_words(serve: Serve) -> None:
    bench = await serve()
    body = b'{"error":{"code":400,"message":"the request exceeds the context size","type":"exceed_context_size_error"}}'
    await bench.worker(does.refuse(400, body))
    with pytest.raises(openai.BadRequestError) as caught:
        await bench.client().completions.create(model=SERVED, prompt="a")
    assert caught.value.code == "context_length_exceeded"
    assert "exceeds the context size" in caught.value.message
    assert caught.value.body == {
        "message": "the request exceeds the context size",
        "type": "invalid_request_error",
        "param": None,
        "code": "context_length_exceeded",
    }


async def test_a_fault_of_the_worker_is_an_internal_server_error(serve: Serve) -> None:
    bench = await serve()
    worker = await bench.worker(does.refuse(500, b"Traceback: boom", kind="text/plain"))
    with pytest.raises(openai.InternalServerError) as caught:
        await bench.client().completions.create(model=SERVED, prompt="a")
    assert caught.value.type == "server_error"
    assert len(worker.seen) == 1  # a 500 may be the request's own fault: it is not carried to other workers


async def test_no_worker_is_said_with_the_reason(serve: Serve) -> None:
    bench = await serve()
    bench.publish(state="unavailable", reason="The worker was killed for using too much memory.", workers=[])
    with pytest.raises(openai.InternalServerError) as caught:
        await bench.client().completions.create(model=SERVED, prompt="a")
    assert caught.value.status_code == 503
    assert caught.value.code == "endpoint_unavailable"
    assert "too much memory" in caught.value.message
    assert int(caught.value.response.headers["retry-after"]) > 0


async def test_a_full_endpoint_is_a_rate_limit_error(serve: Serve) -> None:
    bench = await serve(Limits(queue_length=0), capacity=1)
    worker = await bench.worker(does.hang)
    async with bench.http as http:
        pending = asyncio.create_task(http.post("/completions", json={"prompt": "a"}))
        await worker.wait_for(1)
        with pytest.raises(openai.RateLimitError) as caught:
            await bench.client().completions.create(model=SERVED, prompt="a")
        pending.cancel()
    assert caught.value.code == "endpoint_busy"
    assert int(caught.value.response.headers["retry-after"]) > 0


async def test_a_worker_that_dies_mid_stream_raises_after_its_tokens(serve: Serve) -> None:
    bench = await serve()
    await bench.worker(does.die_mid_stream)
    stream = await bench.client().chat.completions.create(model=SERVED, messages=ASK, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "one "
    assert (await anext(stream)).choices[0].delta.content == "two "
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert caught.value.code == "worker_failed"
    usage = await bench.used()
    assert (usage.status, usage.error, usage.worker_id) == (200, "worker_failed", "w0")
