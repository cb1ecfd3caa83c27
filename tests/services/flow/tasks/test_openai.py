"""The tasks that call OpenAI-compatible servers, against a small one that is strict about the protocol."""

import json
from typing import Any
from uuid import uuid4

import pytest

from services.flow.context import CalledProvider
from tests.openai_server import KEY, MP3_FRAME, OpenAIServer, vector
from tests.services.flow.world import World
from tests.serving import FileServer, send

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("openai.text.summarize", {"text": "A long story.", "model": "gpt-3.5-turbo"}),
    ("openai.completion", {"prompt": "Say it."}),
    ("llm.chat", {"prompt": "Say it.", "model": "gpt-4o-mini"}),
    ("llm.embeddings", {"input": "one", "model": "text-embedding-3-small"}),
    ("openai.audio.tts", {"text": "Hello"}),
]


async def test_a_summary(world: World, openai: OpenAIServer) -> None:
    done = await world.run(
        "openai.text.summarize", text="A long story.", model="gpt-3.5-turbo",
        parameters={"max_tokens": 150, "temperature": 0.7},
    )  # fmt: skip
    assert done["summary"] == "You said: A long story."
    assert done["usage"]["total_tokens"] > 5
    (asked,) = openai.asked_for
    assert asked.body["model"] == "gpt-3.5-turbo"
    assert (asked.body["max_tokens"], asked.body["temperature"]) == (150, 0.7)
    assert asked.body["messages"][-1] == {"role": "user", "content": "A long story."}


@pytest.mark.parametrize("spelled", ["prompt", "text"])
async def test_a_completion(world: World, openai: OpenAIServer, spelled: str) -> None:
    done = await world.run("openai.completion", **{spelled: "Three colours?"})
    assert done["completion"] == "You said: Three colours?"
    assert openai.asked_for[0].body["model"] == "gpt-4o-mini"


async def test_a_chat(world: World, openai: OpenAIServer) -> None:
    messages = [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"},
    ]  # fmt: skip
    done = await world.run("llm.chat", messages=messages, system="Be short.", model="gpt-4o-mini")
    assert done["text"] == "You said: Bye"
    assert done["message"] == {"role": "assistant", "content": "You said: Bye"}
    assert done["finish_reason"] == "stop"
    assert openai.asked_for[0].body["messages"] == [{"role": "system", "content": "Be short."}, *messages]
    for wrong in ([], ["Hi"], [{"content": "Hi"}], [{"role": "king", "content": "Hi"}]):
        assert (await world.fails("llm.chat", messages=wrong, model="gpt-4o-mini")).code == "bad_messages"


async def test_vectors_come_in_the_order_of_the_texts(world: World, openai: OpenAIServer) -> None:
    done = await world.run("llm.embeddings", input=["one", "two", "three"], model="text-embedding-3-small")
    assert done["embeddings"] == [vector("one"), vector("two"), vector("three")]
    assert (await world.run("llm.embeddings", input="one", model="text-embedding-3-small"))["embeddings"] == [
        vector("one")
    ]
    for wrong in ([], "", ["a", ""], ["a", 1], {"a": 1}, ["a"] * 3000):
        failed = await world.fails("llm.embeddings", input=wrong, model="text-embedding-3-small")
        assert failed.code == "bad_input"


async def test_speech_is_a_file_that_can_be_written_down_again(world: World, openai: OpenAIServer) -> None:
    audio = (await world.run("openai.audio.tts", text="Hello", voice="alloy"))["audio"]
    assert (audio["name"], audio["media_type"], audio["size"]) == ("speech.mp3", "audio/mpeg", 5 * len(MP3_FRAME))
    assert await world.context().read(audio, 10**6) == MP3_FRAME * 5
    assert openai.asked_for[0].body["model"] == "tts-1"
    done = await world.run("openai.audio.transcription", file=audio, language="de")
    assert done["text"] == f"{5 * len(MP3_FRAME)} bytes of speech.mp3 in de."
    other = (await world.run("openai.audio.tts", text="Hello", format="flac"))["audio"]
    assert (other["name"], other["media_type"]) == ("speech.flac", "audio/flac")


async def test_a_recording_that_is_too_large_or_gone(world: World, openai: OpenAIServer) -> None:
    audio = await world.context().save("a.wav", "audio/wav", bytes(26 * 1024**2))
    failed = await world.fails("openai.audio.transcription", file=audio)
    assert failed.message == "The file a.wav is larger than 25 MiB, which is the limit."
    assert (await world.fails("openai.audio.transcription", file={"name": "x"})).code == "bad_file"
    assert (
        await world.fails("openai.audio.transcription", file={"artifact_id": str(uuid4())})
    ).code == "artifact_not_found"
    assert not openai.asked_for


async def test_an_empty_text_is_not_paid_for(world: World, openai: OpenAIServer) -> None:
    for name in ("openai.text.summarize", "openai.audio.tts"):
        assert (await world.fails(name, text=" \n")).code == "no_text"
    assert not openai.seen


async def test_an_endpoint_is_called_with_its_key_and_its_own_model(world: World) -> None:
    with OpenAIServer(key="job-bound") as gateway:
        seen: list[Any] = []

        def without_model(request: Any, body: dict[str, Any]) -> None:
            seen.append(body)

        with FileServer() as front:

            def route(request: Any, fault: Any) -> None:
                body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
                assert request.headers["Authorization"] == "Bearer job-bound"
                without_model(request, body)
                answer = {"choices": [{"message": {"role": "assistant", "content": "local"}}]}
                send(request, 200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

            front.route("/endpoints/e1/v1/chat/completions", route)
            world.rows.endpoints["e1"] = CalledProvider(f"{front.url}/endpoints/e1/v1", "job-bound")
            for name in ("llm.chat", "openai.completion"):
                await world.run(name, prompt="Hi", endpoint="e1")
            assert (await world.run("openai.text.summarize", text="Hi", endpoint="e1")) == {
                "summary": "local",
                "usage": {},
            }
            assert all("model" not in body for body in seen)
            await world.run("llm.chat", prompt="Hi", endpoint="e1", model="an-adapter")
            assert seen[-1]["model"] == "an-adapter"
        assert not gateway.seen
    assert (await world.fails("llm.chat", prompt="Hi", endpoint="e2")).code == "endpoint_not_found"
    for more in ({"base_url": "https://api.example.com/v1"}, {"credential_id": str(uuid4())}):
        assert (await world.fails("llm.chat", prompt="Hi", endpoint="e1", **more)).code == "provider_ambiguous"


@pytest.mark.parametrize(("name", "inputs"), CALLS)
async def test_a_busy_provider_says_when_to_come_back(
    world: World, openai: OpenAIServer, name: str, inputs: dict[str, Any]
) -> None:
    openai.limit(1, "7")
    failed = await world.fails(name, **inputs)
    assert (failed.code, failed.retryable, failed.after) == ("provider_busy", True, 7.0)
    assert failed.message == "The provider answered 429: Rate limit reached for requests."
    assert len(openai.seen) == 1  # tries are the engine's
    await world.run(name, **inputs)


@pytest.mark.parametrize(("name", "inputs"), CALLS)
async def test_a_refused_key_is_told_without_it(
    world: World, openai: OpenAIServer, name: str, inputs: dict[str, Any]
) -> None:
    world.rows.key = "sk-wrong-very-secret-key-123456"
    failed = await world.fails(name, **inputs)
    assert (failed.code, failed.retryable) == ("provider_key_refused", False)
    assert failed.message.startswith("The provider answered 401: Incorrect API key provided: ***")
    for part in ("very-secret", "sk-wrong", "3456", "Bearer"):
        assert part not in failed.message


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"model": "gpt-9"}, "provider_not_found", "The model `gpt-9` does not exist"),
        ({"parameters": {"temperature": 9}}, "provider_refused", "Invalid 'temperature': must be from 0 to 2"),
        ({"parameters": {"temprature": 1}}, "provider_refused", "Unrecognized request argument supplied: temprature"),
        ({"parameters": {"stream": True, "n": 3}}, "bad_parameters", "`parameters` cannot have n, stream"),
        ({"parameters": {"messages": []}}, "bad_parameters", "cannot have messages"),
    ],
)
async def test_faults_are_told_in_the_providers_words(
    world: World, openai: OpenAIServer, inputs: dict[str, Any], code: str, words: str
) -> None:
    failed = await world.fails("openai.completion", prompt="Hi", **inputs)
    assert failed.code == code
    assert words in failed.message
    assert not failed.retryable


@pytest.mark.parametrize(
    "raw", [b"<html>proxy</html>", b"[]", b'{"choices": []}', b'{"choices": "none"}', b"null", b"\xff"]
)
async def test_a_server_that_is_not_compatible(world: World, openai: OpenAIServer, raw: bytes) -> None:
    openai.raw = raw
    for name, inputs in (
        *CALLS[:4],
        ("openai.audio.transcription", {"file": await world.context().save("a", "a/b", b"x")}),
    ):
        assert (await world.fails(name, **inputs)).code == "bad_answer"


async def test_what_was_lost_on_the_way_may_be_tried_again(world: World, openai: OpenAIServer) -> None:
    world.openai = "http://127.0.0.1:1/v1"
    failed = await world.fails("llm.chat", prompt="Hi", model="gpt-4o-mini")
    assert (failed.code, failed.retryable) == ("unreachable", True)
    assert failed.message == "127.0.0.1:1 refuses the connection."


async def test_a_private_base_url_is_refused_also_after_a_redirect(world: World, web: FileServer) -> None:
    with OpenAIServer() as private:
        failed = await world.fails("llm.chat", prompt="Hi", model="gpt-4o-mini", base_url=private.base_url)
        assert failed.code == "address_refused"
        web.redirect("/v1/chat/completions", f"{private.base_url}/chat/completions")
        failed = await world.fails("llm.chat", prompt="Hi", model="gpt-4o-mini", base_url=f"{web.url}/v1")
        assert (failed.code, failed.retryable) == ("address_refused", False)
        assert not private.seen


async def test_a_huge_answer_is_stopped(world: World, openai: OpenAIServer) -> None:
    openai.raw = b'{"choices": "' + b"x" * (65 * 1024**2) + b'"}'
    assert (await world.fails("llm.chat", prompt="Hi", model="gpt-4o-mini")).code == "too_large"


async def test_nothing_of_the_environment_is_sent(
    world: World, openai: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID", "BASE_URL", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", "from-the-environment")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Own: from-the-environment")
    await world.run("llm.chat", prompt="Hi", model="gpt-4o-mini")
    assert "from-the-environment" not in str(openai.asked_for[0].headers)
    assert openai.asked_for[0].headers["authorization"] == f"Bearer {KEY}"
    world.rows.key = None
    failed = await world.fails("llm.chat", prompt="Hi", model="gpt-4o-mini")
    assert "You didn't provide an API key" in failed.message  # no header was sent at all
