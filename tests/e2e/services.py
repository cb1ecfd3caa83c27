"""Stepway as services, as tests start, ask, kill and watch it. It is asked in the very way in which one process is."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.e2e.instance import Stepway, until
from tests.testbed.distributed import Distributed
from tests.testbed.machine import need


class Services(Stepway):
    """`made` runs the services; what is asked goes through its front."""

    def __init__(self, made: Distributed) -> None:
        super().__init__(made.folder.path)
        self.made_of = made
        self.url, self.key = made.url, made.key
        self.settings = {"database_url": made.database_url}

    def kill_service(self, name: str) -> None:
        """SIGKILL, as by want of memory. `name` is a replica's, or of one of its servers."""
        self.made_of.processes.kill(name)

    def start_service(self, name: str) -> None:
        self.made_of.processes.restart(name)
        self.made_of.wait_ready(name)

    def dapr_sql(self, statement: str) -> list[Any]:
        with psycopg.connect(self.made_of.dapr_url, autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def until_forgotten(self) -> None:
        """Until the workflow engines have nothing any more of runs that are over."""
        until(lambda: not self.sql("SELECT 1 FROM jobs.instance"), what="Dapr to forget what is over")


@contextmanager
def running_services(
    settings: Mapping[str, object], *, replicas: int | Mapping[str, int] = 1, durable: bool = False
) -> Iterator[Services]:
    need("dapr", "minio")
    made = Distributed(settings, replicas=replicas, durable=durable).start()
    try:
        yield Services(made)
    finally:
        made.close()
