"""Runs inside vLLM's image, in each pod of a worker that spans nodes: makes one server of them, and ends with any of them.

The leader starts Ray's head, and `vllm serve` once every follower has come to it; a follower joins Ray with its GPUs. Each
follower keeps a connection to the leader, on which both say every few seconds that they live. Whoever loses the other, its
Ray or its server ends, its pod starts anew, and they find each other again: there is no half of a group that goes on.
Pods that are made from another template are left waiting, so that an update never mixes two versions.

A follower answers the health path as its leader does, so that all pods of a group are ready when the group serves, and
none before. `containers.Container` names the variables. Only the standard library; Python 3.11 or newer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

RAY_PORT = 6379
MEETING_PORT = 6380
BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # without one: the other is gone
AGAIN = 1.0
ANSWER = 5.0
END = 60.0  # for the server to end what it was doing
STORE = 1 << 30  # bytes of Ray's shared memory: requests only, weights never pass through it
HEALTH = "/health"


@dataclass
class Place:
    """Who this pod is, and where the others are."""

    rank: int
    pods: int
    ip: str
    leader: str
    template: str
    port: int
    ray_port: int = RAY_PORT
    meeting_port: int = MEETING_PORT

    @property
    def ray_address(self) -> str:
        return f"[{self.ip}]:{self.ray_port}" if ":" in self.ip else f"{self.ip}:{self.ray_port}"


Ends = dict[str, "asyncio.Future[Any]"]  # why a pod ends: what it waits for


class Lost(Exception):
    """The group is not whole any more; the message says why."""


async def run(place: Place, serve: list[str]) -> int:
    """The exit code of this pod: 0 only when it was asked to end."""
    asked = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, asked.set)
    try:
        await (lead(place, serve, asked) if place.rank == 0 else follow(place, asked))
    except Lost as lost:
        say(str(lost))
    return 0 if asked.is_set() else 1


# --- the leader


@dataclass
class Meeting:
    """Where followers come to. `whole` once all are here; until then they may come and go."""

    place: Place
    present: dict[int, asyncio.StreamWriter] = field(default_factory=dict)
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    _gone: asyncio.Event = field(default_factory=asyncio.Event)
    _why: str = ""

    async def broken(self) -> None:
        """Raises Lost when a follower has gone."""
        await self._gone.wait()
        raise Lost(self._why)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, TimeoutError):
            hello = json.loads(await asyncio.wait_for(reader.readline(), ANSWER))
            rank = int(hello["rank"])
            if hello["template"] == self.place.template and 0 < rank < self.place.pods:
                await self._keep(rank, reader, writer)
        writer.close()

    async def _keep(self, rank: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if rank in self.present and self.whole.is_set():
            self._break(f"follower {rank} has come anew")
            return
        self.present[rank] = writer
        say(f"follower {rank} is here")
        writer.write(json.dumps({"ray": self.place.ray_address, "host": self.place.ip}).encode() + b"\n")
        if len(self.present) == self.place.pods - 1:
            self.whole.set()
        with contextlib.suppress(OSError, TimeoutError):
            await alive(reader, writer)
        if self.whole.is_set():
            self._break(f"follower {rank} has gone")
        elif self.present.get(rank) is writer:
            del self.present[rank]

    def _break(self, why: str) -> None:
        self._why = self._why or why
        self._gone.set()


async def lead(place: Place, serve: list[str], asked: asyncio.Event) -> None:
    """Until the server has ended, or has been ended as asked. Raises Lost."""
    ray = await start(
        place, "ray", "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false",
        f"--node-ip-address={place.ip}", f"--port={place.ray_port}", f"--object-store-memory={STORE}",
    )  # fmt: skip
    ends: Ends = {"Ray has ended": asyncio.ensure_future(ray.wait())}
    if not await came(reached(place.ip, place.ray_port), ends, asked):
        return
    meeting = Meeting(place)
    await asyncio.start_server(meeting.take, place.ip, place.meeting_port)  # until this process ends
    say(f"waiting for {place.pods - 1} followers")
    ends["the group is broken"] = asyncio.ensure_future(meeting.broken())
    if await came(meeting.whole.wait(), ends, asked):
        await _serve(place, serve, ends, asked)


async def _serve(place: Place, serve: list[str], ends: Ends, asked: asyncio.Event) -> None:
    say("the group is whole: starting the server")
    server = await start(place, *serve, RAY_ADDRESS=place.ray_address)
    ends["the server has ended"] = asyncio.ensure_future(server.wait())
    try:
        await came(asked.wait(), ends, asked)
    finally:
        if server.returncode is None:
            server.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait(), END)


# --- followers


async def follow(place: Place, asked: asyncio.Event) -> None:
    """Until the leader, or the own Ray, is gone. Raises Lost.

    One that is asked to end stays for what its leader still answers; at the latest its pod's grace period ends it.
    """
    leader = Leader(place)
    await asyncio.start_server(leader.answer, place.ip, place.port)  # until this process ends
    if not await came(leader.meet(), {}, asked):
        return
    say(f"joining {leader.ray}")
    ray = await start(
        place, "ray", "start", f"--address={leader.ray}", "--block", "--disable-usage-stats",
        f"--node-ip-address={place.ip}", f"--object-store-memory={STORE}",
    )  # fmt: skip
    ends: Ends = {"Ray has ended": asyncio.ensure_future(ray.wait())}
    await came(leader.gone(), ends, asyncio.Event())
    raise Lost("the leader has gone")


@dataclass
class Leader:
    """The leader as a follower knows it: `host` and `ray` once they have met."""

    place: Place
    host: str | None = None
    ray: str = ""
    _line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def meet(self) -> None:
        """As often as it takes: the leader may not have started, or be made from another template and about to go."""
        say(f"looking for the leader, {self.place.leader}")
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, TimeoutError):
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(self.place.leader, self.place.meeting_port), ANSWER
                )
                hello = {"rank": self.place.rank, "template": self.place.template}
                writer.write(json.dumps(hello).encode() + b"\n")
                told = json.loads(await asyncio.wait_for(reader.readline(), ANSWER))
                self.host, self.ray, self._line = str(told["host"]), str(told["ray"]), (reader, writer)
                return
            await asyncio.sleep(AGAIN)

    async def gone(self) -> None:
        if self._line is not None:
            await alive(*self._line)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request for the health path: 200 when the leader's answer is."""
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), ANSWER)
            status = b"200 OK" if await self.is_well() else b"503 Service Unavailable"
            writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        writer.close()

    async def is_well(self) -> bool:
        if self.host is None:
            return False
        try:
            return await asyncio.wait_for(self._asked(), ANSWER)
        except (OSError, TimeoutError):
            return False

    async def _asked(self) -> bool:
        reader, writer = await asyncio.open_connection(self.host, self.place.port)
        try:
            writer.write(f"GET {HEALTH} HTTP/1.1\r\nHost: leader\r\nConnection: close\r\n\r\n".encode())
            return b" 200" in (await reader.readline())[:16]
        finally:
            writer.close()


# --- what both need


async def alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say and hear signs of life until the other says none any more."""

    async def beat() -> None:
        while True:
            writer.write(b"\n")
            await writer.drain()
            await asyncio.sleep(BEAT)

    beating = asyncio.ensure_future(beat())
    try:
        while await asyncio.wait_for(reader.read(1024), SILENCE):
            pass
    except (OSError, TimeoutError):
        pass
    finally:
        beating.cancel()


async def came(wanted: Coroutine[Any, Any, object], ends: Ends, asked: asyncio.Event) -> bool:
    """Whether it came before the pod was asked to end. Raises Lost when one of `ends` came before both."""
    waiting, stop = asyncio.ensure_future(wanted), asyncio.ensure_future(asked.wait())
    try:
        await asyncio.wait({waiting, stop, *ends.values()}, return_when=asyncio.FIRST_COMPLETED)
        for why, end in ends.items():
            if end.done() and not asked.is_set():
                code = end.result()  # raises what it has itself to say
                raise Lost(f"{why}, with exit code {code}")
        return waiting.done()
    finally:
        waiting.cancel()
        stop.cancel()


async def start(place: Place, *command: str, **more: str) -> asyncio.subprocess.Process:
    """`more` are variables beside the pod's own. vLLM must know by which of its addresses each pod speaks to the others."""
    return await asyncio.create_subprocess_exec(*command, env={**os.environ, "VLLM_HOST_IP": place.ip, **more})


async def reached(host: str, port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(AGAIN)
        else:
            writer.close()
            return


def say(text: str) -> None:
    sys.stdout.write(f"group: {text}\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True, help="of the server's health path")
    parser.add_argument("--ray-port", type=int, default=RAY_PORT)
    parser.add_argument("--meeting-port", type=int, default=MEETING_PORT)
    parser.add_argument("serve", nargs="+", help="what the leader runs")
    given = parser.parse_args(arguments)
    place = Place(
        rank=int(os.environ["STEPWAY_RANK"]), pods=int(os.environ["STEPWAY_PODS"]), ip=os.environ["STEPWAY_POD_IP"],
        leader=os.environ["STEPWAY_LEADER"], template=os.environ["STEPWAY_TEMPLATE"], port=given.port,
        ray_port=given.ray_port, meeting_port=given.meeting_port,
    )  # fmt: skip
    return asyncio.run(run(place, given.serve))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
