"""Runs on PostgreSQL: `PostgresStore`. Crash-safe, and for several servers on one database.

store     the interface, and which runs are here     writer    group commit, retries, exactly once
batch     one transaction's statements               work      what the writer is asked to do
keeper    who lives and who is dead                  claims    runs that have no owner
feeds     what readers wait on                       reading   queries of rows, events and items
tidying   purge and retention                        schema    the tables
"""

from stepway.runner.store.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
