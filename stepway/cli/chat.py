"""A conversation with an endpoint, on a terminal or between the pipes of a script."""

import sys
from typing import Any

from stepway.cli.command import Cli


class Conversation:
    """Keeps what has been said, so that the model knows it."""

    def __init__(self, cli: Cli, endpoint_id: str, system: str | None, options: dict[str, Any]) -> None:
        self._cli = cli
        self._endpoint_id = endpoint_id
        self._options = options
        self._said = [{"role": "system", "content": system}] if system else []

    def ask(self, prompt: str) -> None:
        """Prints the answer as it comes."""
        self._said.append({"role": "user", "content": prompt})
        answer = []
        for piece in self._cli.client.chat(self._endpoint_id, self._said, **self._options):
            self._cli.out.write(piece)
            answer.append(piece)
        self._cli.out.write("\n")
        self._said.append({"role": "assistant", "content": "".join(answer)})

    def whole(self, prompt: str) -> Any:
        """The endpoint's whole answer, not streamed."""
        messages = [*self._said, {"role": "user", "content": prompt}]
        options = {name: value for name, value in self._options.items() if value is not None}
        path = f"/endpoints/{self._endpoint_id}/v1/chat/completions"
        with self._cli.client.stream("POST", path, body={"messages": messages, **options}, silence=600.0) as response:
            response.read()
            return response.json()

    def talk(self) -> None:
        """A line, an answer, and so on to the end of the input."""
        if sys.stdin.isatty():
            self._cli.out.say("Ctrl-D ends the conversation.", "dim")
        while True:
            if sys.stdin.isatty():
                sys.stderr.write("> ")
                sys.stderr.flush()
            line = sys.stdin.readline()
            if line == "":
                return
            if line.strip():
                self.ask(line.strip())
