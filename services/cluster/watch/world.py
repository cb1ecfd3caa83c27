"""What a cluster's watch works with."""

from dataclasses import dataclass, field
from uuid import UUID

from services.cluster.runtimes.kubernetes.watcher import Watcher
from services.cluster.sites.clients import Clients
from services.cluster.watch.healer import HealPace
from shared.contracts.ports import ObserverPort
from shared.objects.store import ObjectStore
from shared.security.kubeconfig_server import ServerPolicy
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class WatchPace:
    """Seconds. A fault counts once it has lasted for `grace`; `ask` is how often a silent server is asked for its version."""

    grace: float = 1.0
    turn: float = 0.5  # between two looks at whether there is a fault
    again: float = 20.0  # between two whole reports, though nothing seems to have changed
    ask: float = 2.0
    duties: float = 10.0  # between two looks at what we may do there, and whether the inspection is old
    heal: HealPace = field(default_factory=HealPace)


@dataclass(frozen=True, slots=True)
class World:
    """`watchers` are those of the clusters that this process follows, for its jobs to wait by."""

    app: ObserverPort
    clients: Clients
    addresses: ServerPolicy  # where clusters may be
    objects: ObjectStore
    settings: Settings
    pace: WatchPace = field(default_factory=WatchPace)
    watchers: dict[UUID, Watcher] = field(default_factory=dict)
