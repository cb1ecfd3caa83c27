"""Which images the engines run in on a cluster: a setting, so that a mirror or an image of one's own can be used."""

from typing import Literal

from pydantic import BaseModel


class Images(BaseModel):
    """`loader` has Python for the loader's script where an engine's own image has none; None: every image has."""

    llama_cpp: str = "ghcr.io/ggml-org/llama.cpp:server"
    llama_cpp_program: Literal["server", "xllamacpp"] = "server"
    vllm: str = "docker.io/vllm/vllm-openai:v0.11.0"
    litellm: str = "ghcr.io/berriai/litellm-non_root:main-stable"
    loader: str | None = "docker.io/library/python:3.13-slim"
