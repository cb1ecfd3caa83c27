"""The program of a llama.cpp worker: a GGUF model behind an OpenAI-compatible HTTP API at a port of this machine.

Started by `llama_cpp`'s plan as a plain script: only the standard library and xllamacpp are imported, so that it
starts in a quarter of a second. SIGTERM lets the requests that are being answered end, as long as the one who sent it
is willing to wait.
"""

import argparse
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

_HEADER = 1024 * 1024  # bytes of a GGUF file in which its own keys stand, before the vocabulary
_BUSY = re.compile(r"^llamacpp:requests_(?:processing|deferred) (\d+)", re.MULTILINE)
_PROMPT_CACHE = 0  # MiB kept for prompts of finished requests; the memory estimate knows of none


def main() -> int:
    if "--check" in sys.argv[1:]:
        import xllamacpp  # noqa: F401 (whether it can be imported is the question)

        return 0
    server = _serve(_arguments())
    stop = threading.Event()
    # the library has set handlers of its own for these, which would leave us without a server but alive
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    while _busy(server):
        time.sleep(0.05)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--projector", default="")
    parser.add_argument("--name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--api-key-file", default=os.devnull)
    parser.add_argument("--embedding", action="store_true")
    return parser.parse_args()


def _serve(given: argparse.Namespace) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = given.model
    params.model_alias = {given.name}
    params.hostnames = [given.host]
    params.port = given.port
    params.n_ctx = given.context
    params.n_parallel = given.parallel
    params.n_batch = max(given.batch, params.n_batch)
    params.n_ubatch = given.batch
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    params.n_threads_http = 4 * given.parallel + 8  # waiting requests and health checks need threads too
    params.endpoint_metrics = True
    params.endpoint_slots = False  # would show what others ask
    params.ui = False
    params.offline = True
    params.fit_params = False  # the plan has decided, and promised the memory
    params.cache_ram_mib = _PROMPT_CACHE
    key = Path(given.api_key_file).read_text().strip()
    if key:
        params.api_keys = [key]
    if given.projector:
        params.mmproj.path = given.projector
    if given.embedding:
        params.embedding = True
        params.n_batch = params.n_ubatch
        if b".pooling_type" not in _head(given.model):
            params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return xllamacpp.Server(params)


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(_HEADER)


def _busy(server: Any) -> bool:
    answer = server.handle_metrics()
    return any(int(count) for count in _BUSY.findall(answer if isinstance(answer, str) else str(answer)))


if __name__ == "__main__":
    # the library's own clean-up may wait for connections that clients keep open
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
