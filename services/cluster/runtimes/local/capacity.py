"""What has been promised to workers, against what this machine has. Memory is never promised twice; CPUs may be."""

from dataclasses import dataclass

from services.cluster.runtimes.base import Capacity, InsufficientCapacity
from services.cluster.runtimes.local.machine import memory_available
from services.cluster.runtimes.local.store import Intent


@dataclass(frozen=True, slots=True)
class Limits:
    """Memory in bytes for all workers together, and threads (CPUs times the overcommit)."""

    memory_bytes: int
    threads: int

    def usage(self, intents: list[Intent]) -> Capacity:
        return Capacity(
            memory_bytes=self.memory_bytes,
            memory_promised_bytes=sum(intent.replicas * intent.memory_bytes for intent in intents),
            memory_available_bytes=memory_available(),
            threads=self.threads,
            threads_promised=sum(intent.replicas * intent.threads for intent in intents),
            workers=sum(intent.replicas for intent in intents),
        )

    def check(self, others: list[Intent], now: Intent | None, wanted: Intent) -> None:
        """Raises InsufficientCapacity when `wanted`, in the place of `now`, does not fit beside the others."""
        usage = self.usage(others)
        need = wanted.replicas * wanted.memory_bytes
        more = need - (now.replicas * now.memory_bytes if now else 0)
        threads = wanted.replicas * wanted.threads
        free = self.memory_bytes - usage.memory_promised_bytes
        free_threads = self.threads - usage.threads_promised
        more_threads = threads - (now.replicas * now.threads if now else 0)
        lacking: dict[str, float] = {}
        sentences = []
        if more > 0 and need > free:
            lacking["memory"] = need - free
            sentences.append(
                f"{wanted.replicas} × {_mib(wanted.memory_bytes)} of memory is needed, "
                f"{_mib(max(0, free))} of {_mib(self.memory_bytes)} is not promised to other endpoints"
            )
        elif more > usage.memory_available_bytes:
            lacking["memory"] = more - usage.memory_available_bytes
            sentences.append(
                f"{_mib(more)} more memory is needed, the machine has {_mib(usage.memory_available_bytes)} free"
            )
        if more_threads > 0 and threads > free_threads:
            lacking["cpu"] = threads - free_threads
            sentences.append(f"{threads} threads are needed, {max(0, free_threads)} of {self.threads} are not promised")
        if lacking:
            raise InsufficientCapacity(f"This machine has no room: {'; '.join(sentences)}.", lacking)


def _mib(size: int) -> str:
    return f"{size / 1024**2:,.0f} MiB"
