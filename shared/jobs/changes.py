"""What attempts of steps write, a group at a time: what is asked for of one run in one moment is one statement, one commit.

A step's success and the begin of the next one go together, and so do the branches of a job. While a group is written, the
next one gathers; so a run has one statement at a time, and branches do not queue for the lock of their job.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from shared.jobs.hub import Hub
from shared.jobs.lane import Lane
from shared.jobs.stored import json_text
from shared.jobs.views import job_percent, step_view

# A run that a service drives may be silent for as long.
RENEWED = "CASE WHEN job.lease_until IS NOT NULL THEN clock_timestamp() + interval '30 seconds' END"


def with_events(guard: LiteralString, changed: LiteralString) -> LiteralString:
    """A statement that changes steps of a job that passes `guard`, and writes an event for each.

    `changed` are common table expressions of which the last, `changed`, has the new rows, with their `place` from 1. The
    job is locked first, as everywhere. Its conditions and those in `changed` are then checked on the newest rows, and no
    number of the sequence is used up when nothing changes. All events of a statement tell how far the job is with all.
    """
    return f"""
        WITH job AS (SELECT id, state, phase FROM jobs.job
                      WHERE id = %(job)s AND fence = %(fence)s AND {guard} FOR NO KEY UPDATE),
             {changed},
             counted AS (UPDATE jobs.job SET event_seq = event_seq + made.events, lease_until = {RENEWED}
                           FROM (SELECT count(*) AS events FROM changed) made
                          WHERE job.id = %(job)s AND made.events > 0
                         RETURNING job.id, job.topic, job.event_seq - made.events AS seq, made.events),
             topic AS (UPDATE jobs.topic t SET seq = t.seq + counted.events FROM counted WHERE t.id = counted.topic
                       RETURNING t.seq - counted.events AS seq),
             event AS (INSERT INTO jobs.event (job_id, seq, topic, topic_seq, type, data)
                       SELECT counted.id, counted.seq + changed.place, counted.topic,
                              (SELECT seq FROM topic) + changed.place, 'step',
                              {step_view("changed")} || jsonb_build_object('job_percent', {job_percent("changed")})
                         FROM counted, changed ORDER BY changed.place)
        SELECT changed.key, changed.attempt, changed.tries, counted.topic FROM changed, counted
    """


# `running` begins an attempt; every other state ends the one that has the token.
_WRITE = with_events(
    "true",
    """asked AS MATERIALIZED (
           SELECT asked.* FROM job, ROWS FROM (jsonb_to_recordset(CAST(%(changes)s AS jsonb)) AS (
                      key text, token uuid, state text, title text, weight float8, result jsonb, error jsonb, after float8
                  )) WITH ORDINALITY AS asked(key, token, state, title, weight, result, error, after, place)),
       begun AS (
           INSERT INTO jobs.step AS step (job_id, key, position, title, weight, state, attempt, tries, token, started_at)
           SELECT job.id, asked.key,
                  coalesce((SELECT position FROM jobs.step WHERE job_id = %(job)s AND key = asked.key),
                           (SELECT max(position) FROM jobs.step WHERE job_id = %(job)s) + asked.place, asked.place),
                  asked.title, asked.weight, 'running', 1, 1, asked.token, clock_timestamp()
             FROM job, asked WHERE asked.state = 'running' AND job.state = 'running' AND job.phase = 'forward'
           ON CONFLICT (job_id, key) DO UPDATE
              SET state = 'running', attempt = step.attempt + 1, tries = step.tries + 1, token = excluded.token,
                  started_at = excluded.started_at, ended_at = NULL, percent = NULL, message = NULL, error = NULL
            WHERE step.state <> 'succeeded'
           RETURNING step.*),
       ended AS (
           UPDATE jobs.step
              SET state = asked.state, error = asked.error, token = NULL, ended_at = clock_timestamp(),
                  run_at = clock_timestamp() + make_interval(secs => asked.after),
                  result = CASE asked.state WHEN 'succeeded' THEN coalesce(asked.result, 'null') ELSE step.result END,
                  percent = CASE asked.state WHEN 'succeeded' THEN 100 ELSE step.percent END,
                  message = CASE asked.state WHEN 'succeeded' THEN NULL ELSE step.message END
             FROM asked
            WHERE asked.state <> 'running' AND step.job_id = %(job)s AND step.key = asked.key
              AND step.token = asked.token AND step.state = 'running'
           RETURNING step.*),
       changed AS (
           SELECT step.*, row_number() OVER (ORDER BY asked.place) AS place
             FROM (SELECT * FROM begun UNION ALL SELECT * FROM ended) step JOIN asked USING (key))""",
)

Answer = tuple[Any, bool]
"""The row, or None where it was refused; and whether it was tried before, and so may have been written by that try."""


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    key: str
    begins: bool
    members: str  # JSON
    told: asyncio.Future[Answer]


class Changes:
    """What waits to be written, of each run. Safe for the tasks of one event loop."""

    def __init__(self, lane: Lane, hub: Hub) -> None:
        self._lane = lane
        self._hub = hub
        self._waiting: dict[tuple[UUID, int], list[_Change]] = {}  # of runs that have a writer
        self._writers: set[asyncio.Task[None]] = set()

    def add(self, job: UUID, fence: int, change: Mapping[str, Any]) -> asyncio.Future[Answer]:
        """Have it written, after what was added before it or together with that.

        `change` has the `key` and `token`, the new `state` and what goes with that. An end is written even if nobody
        waits for it any more, a begin is not.
        """
        loop = asyncio.get_running_loop()
        added = _Change(change["key"], change["state"] == "running", json_text(change), loop.create_future())
        waiting = self._waiting.get((job, fence))
        if waiting is not None:
            waiting.append(added)
        else:
            self._waiting[job, fence] = [added]
            writer = loop.create_task(self._keep_writing(job, fence))  # begins after what runs now has added its own
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)
        return added.told

    async def close(self) -> None:
        """What is not written by now is not written any more: the runs have been given up."""
        for writer in self._writers:
            writer.cancel()
        await asyncio.gather(*self._writers, return_exceptions=True)

    async def _keep_writing(self, job: UUID, fence: int) -> None:
        waiting, group = self._waiting[job, fence], list[_Change]()
        try:
            while waiting:
                group = _first_of_each_step(waiting)
                del waiting[: len(group)]
                await self._write(job, fence, [one for one in group if not (one.begins and one.told.done())])
        finally:
            del self._waiting[job, fence]
            for one in (*group, *waiting):
                one.told.cancel()  # no matter to those that have been told

    async def _write(self, job: UUID, fence: int, group: list[_Change]) -> None:
        if not group:
            return
        changes = f"[{','.join(one.members for one in group)}]"
        try:
            rows, again = await self._lane.patiently(_WRITE, {"job": job, "fence": fence, "changes": changes})
        except psycopg.Error as error:
            if len(group) > 1:  # the fault of one of them is not that of the others
                for one in group:
                    await self._write(job, fence, [one])
            elif not group[0].told.done():
                group[0].told.set_exception(error)
            return
        if rows:
            self._hub.publish(job, rows[0].topic)
        found = {row.key: row for row in rows}
        for one in group:
            if not one.told.done():
                one.told.set_result((found.get(one.key), again))


def _first_of_each_step(waiting: list[_Change]) -> list[_Change]:
    """The changes up to the second one of some step: a statement changes a row once."""
    keys: set[str] = set()
    for number, one in enumerate(waiting):
        if one.key in keys:
            return waiting[:number]
        keys.add(one.key)
    return list(waiting)
