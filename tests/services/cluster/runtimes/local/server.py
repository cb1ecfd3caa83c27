"""A small HTTP server whose faults the tests choose: by its arguments before it is ready, by requests afterwards."""

import argparse
import http.server
import json
import os
import signal
import sys
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
    sick = False
    hoard: bytearray | None = None

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(503 if Handler.sick else 200, {"status": "ok"})
        else:
            self._answer(
                200,
                {
                    "pid": os.getpid(),
                    "argv": sys.argv,
                    "environment": dict(os.environ),
                    "cwd": os.getcwd(),  # noqa: PTH109 (starts faster without pathlib)
                },
            )

    def do_POST(self) -> None:
        command, _, argument = self.path.strip("/").partition("/")
        self._answer(200, {})
        self.wfile.flush()
        if command == "exit":
            os.write(2, b"about to exit\n")
            os._exit(int(argument))
        elif command == "hog":
            Handler.hoard = bytearray(b"x" * (int(argument) << 20))
        elif command == "sick":
            Handler.sick = True
        elif command == "say":
            for number in range(int(argument)):
                sys.stdout.write(f"line {number} {'.' * 80}\n")
            sys.stdout.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--after", type=float, default=0)
    parser.add_argument("--exit", type=int)
    parser.add_argument("--hog", type=int)
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--tell-key")
    given = parser.parse_args()
    if given.exit is not None:
        sys.stderr.write("the model is broken: no such tensor\n")
        sys.exit(given.exit)
    if given.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if given.tell_key:
        with open(given.tell_key) as file:  # noqa: PTH123 (starts faster without pathlib)
            os.write(1, f"the key is {file.read()}\n".encode())
    if given.hog:
        Handler.hoard = bytearray(b"x" * (given.hog << 20))
    time.sleep(given.after)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.pause() if given.stubborn else threading.Event().wait()


if __name__ == "__main__":
    main()
