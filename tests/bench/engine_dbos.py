"""DBOS' half of `tests.bench.engine`: run as a program under an interpreter that has DBOS, with a libpq URL and a count.

Imports nothing of ours, as it runs in an environment of its own. Prints its figures as the last line, in JSON.
"""

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit, urlunsplit

import psycopg
from dbos import DBOS

JOBS = {1: 16, 10: 40}  # by how many run at a time


@DBOS.step()  # type: ignore[untyped-decorator]  # DBOS is not installed where types are checked
async def nothing(number: int) -> int:
    return number + 1


@DBOS.workflow()  # type: ignore[untyped-decorator]  # the same
async def steps(count: int) -> int:
    number = 0
    for _ in range(count):
        number = await nothing(number)
    return number


async def steps_per_second(jobs: int, concurrent: int, count: int) -> float:
    left = list(range(jobs))

    async def client() -> None:
        while left:
            left.pop()
            handle = await DBOS.start_workflow_async(steps, count)
            assert await handle.get_result() == count

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrent)))
    return jobs * count / (time.perf_counter() - began)


async def measure(count: int) -> dict[str, object]:
    await steps_per_second(10, 5, count)  # warm, as ours
    return {f"steps_per_second_{n}": round(await steps_per_second(jobs, n, count)) for n, jobs in JOBS.items()}


def main() -> None:
    url, count = sys.argv[1], int(sys.argv[2])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS bench_dbos")
        connection.execute("CREATE DATABASE bench_dbos")
    own = urlunsplit(urlsplit(url)._replace(scheme="postgresql+psycopg", path="/bench_dbos"))
    DBOS(config={"name": "bench", "system_database_url": own, "log_level": "ERROR", "run_admin_server": False})
    DBOS.launch()
    try:
        figures = asyncio.run(measure(count))
    finally:
        DBOS.destroy()
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
