"""Readers of one run: many of them that are cut off and come again, and some that never read."""

import asyncio
import json
import select
import socket
from contextlib import ExitStack
from pathlib import Path

from tests.stepway.runner.faults.conftest import Errands, answer, begin, ended, numbers, result
from tests.stepway.runner.serving import Server, until

READERS = 200
COUNT = 300
MIB = 1 << 20

Seen = list[tuple[int, int | None]]  # an event's number, and the `n` of one that the workflow told


async def read(server: Server, seen: Seen, opened: asyncio.Semaphore | None = None, most: int | None = None) -> None:
    """Read on after what was seen, to the end of the stream; with `most`, break off abruptly when so many have been seen."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=MIB)
    last = f"Last-Event-ID: {seen[-1][0]}\r\n" if seen else ""
    writer.write(f"GET /events/run?after_sequence=-1 HTTP/1.1\r\nHost: localhost\r\n{last}\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    begun = b""
    while size := int(await reader.readline(), 16):  # a chunk; nothing at all when the stream was broken off
        *blocks, begun = (begun + (await reader.readexactly(size + 2))[:-2]).split(b"\n\n")
        for block in blocks:
            if block.startswith(b"id: "):
                number, data = block[4:].split(b"\ndata: ")
                seen.append((int(number), json.loads(data)["value"].get("n")))
            if opened is not None:
                opened.release()
                opened = None
            if len(seen) == most:
                writer.transport.abort()
                return
    writer.transport.abort()


async def test_of_200_readers_half_are_cut_off_and_all_see_every_event_once(anywhere: Errands) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(anywhere.server()) for _ in range(1 if anywhere.url is None else 2)]
        begin(servers[0], "tells", "run", count=COUNT)
        opened = asyncio.Semaphore(0)

        async def one(n: int) -> Seen:
            seen: Seen = []
            if n % 2:
                cuts = [20 + n % 130, 160 + n % 130]
                for at, most in enumerate(cuts):
                    await read(servers[(n + at) % len(servers)], seen, opened if not at else None, most)
                    assert len(seen) == most
                await read(servers[n % len(servers)], seen)
            else:
                await read(servers[n // 2 % len(servers)], seen, opened)
            return seen

        async with asyncio.timeout(120):
            readers = [asyncio.create_task(one(n)) for n in range(READERS)]
            for _ in readers:  # each has seen the question
                await opened.acquire()
            assert (await asyncio.to_thread(answer, servers[-1], "run")).status_code == 200
            everything = await asyncio.gather(*readers)
        assert result(servers[-1], "run") == "told"
        whole = everything[0]
        assert [n for _, n in whole] == [None, *range(COUNT), None]
        assert [number for number, _ in whole] == sorted({number for number, _ in whole})
        assert [n for n, seen in enumerate(everything) if seen != whole] == []
        assert numbers(servers[0], "run") == list(range(whole[-1][0] + 1))


def high_water(server: Server) -> int:
    """Bytes that the process has had in memory at most."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def cut_off(connection: socket.socket) -> bool:
    """Whether the other end has reset it; nothing is read for that."""
    poll = select.poll()
    poll.register(connection, 0)
    return any(what & (select.POLLERR | select.POLLHUP) for _, what in poll.poll(0))


async def test_readers_that_never_read_slow_nobody_and_cost_little(errands: Errands) -> None:
    """20 of them, of a run of 30 MB: 600 MB, were it kept for them."""
    with errands.server("--stream-stall", "3s") as server, ExitStack() as stack:
        begin(server, "tells", "run", count=COUNT, size=100_000)
        before = high_water(server)
        deaf = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(20)]
        for one in deaf:
            one.sendall(b"GET /events/run?after_sequence=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            one.settimeout(60)
            assert one.recv(12) == b"HTTP/1.1 200"
        everything: list[Seen] = [[] for _ in range(3)]
        opened = asyncio.Semaphore(0)
        async with asyncio.timeout(100):
            readers = [asyncio.create_task(read(server, seen, opened)) for seen in everything]
            for _ in readers:
                await opened.acquire()
            assert (await asyncio.to_thread(answer, server, "run")).status_code == 200
            await asyncio.gather(*readers)
            assert [[n for _, n in seen] for seen in everything] == [[None, *range(COUNT), None]] * 3
            await asyncio.to_thread(until, lambda: all(map(cut_off, deaf)))
        assert ended(server, "run")["status"] == "completed"
        assert high_water(server) - before < 200 * MIB
