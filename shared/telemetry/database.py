"""How this process uses its pool of database connections, read when somebody looks."""

from sqlalchemy.pool import QueuePool

from shared.db.engine import Database
from shared.telemetry.metrics import Read


def of_database(database: Database) -> list[Read]:
    def states() -> dict[str, float]:
        pool = database.engine.pool
        assert isinstance(pool, QueuePool)
        return {"in_use": pool.checkedout(), "idle": pool.checkedin()}

    return [
        Read("stepway_database_connections", "Connections of this process's pool.", "state", states),
        Read(
            "stepway_database_connections_max", "How many connections the pool may have.", None,
            lambda: {"": database.most_connections},
        ),
    ]  # fmt: skip
