"""The ledger's tables, in the schema `jobs`. Only `shared.jobs.ledger` and its neighbours write them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.base import Base, Created, one_of

JOB_STATES = ("pending", "running", "waiting", "cancelling", "succeeded", "failed", "cancelled", "cleanup_required")
STEP_STATES = ("pending", "running", "succeeded", "failed", "skipped", "cancelled", "undone")
LIVE = ("pending", "running", "waiting", "cancelling")


class JobRow(Base):
    """One piece of long-running work. `fence` grows each time a process takes it; a writer with an older one is refused.

    `phase` is `undo` from the moment that what was done is to be taken back, so that a process which takes over
    does not go forward again.
    """

    __tablename__ = "job"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    version: Mapped[int]
    state: Mapped[str]
    phase: Mapped[str] = mapped_column(server_default="forward")
    attempt: Mapped[int] = mapped_column(server_default="1")
    project_id: Mapped[UUID | None]
    owner_id: Mapped[UUID | None]
    key_id: Mapped[UUID | None]  # the key that asked for the job, or for its latest retry
    topic: Mapped[UUID | None]  # the workflow whose event sequence this job also writes
    resource_type: Mapped[str | None]
    resource_id: Mapped[UUID | None]
    input: Mapped[dict[str, Any]] = mapped_column(JSONB)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    traceparent: Mapped[str | None]  # of the request that made the job (W3C): what is done for it joins that trace
    worker: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]  # of a run that a service drives; a process has a lease for all its runs
    fence: Mapped[int] = mapped_column(BigInteger, server_default="0")
    event_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    run_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
    deadline: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    created_at: Mapped[Created]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(one_of("state", JOB_STATES), name="state"),
        CheckConstraint(one_of("phase", ("forward", "undo")), name="phase"),
        Index("ix_job_claim", "kind", "run_at", postgresql_where=text(f"worker IS NULL AND {one_of('state', LIVE)}")),
        Index("ix_job_cleanup", "kind", postgresql_where=text("state = 'cleanup_required'")),
        Index("ix_job_worker", "worker", postgresql_where=text("worker IS NOT NULL")),
        Index("ix_job_created", "created_at", "id"),
        Index("ix_job_project", "project_id", "created_at", "id"),
        Index("ix_job_topic", "topic", postgresql_where=text("topic IS NOT NULL")),
        Index("ix_job_resource", "resource_id", "created_at"),
        {"schema": "jobs"},
    )


class RunRow(Base):
    """One attempt of a job, from its start or retry to its end."""

    __tablename__ = "run"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.job.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]
    state: Mapped[str] = mapped_column(server_default="pending")
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    created_at: Mapped[Created]
    ended_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint(one_of("state", JOB_STATES), name="state"), {"schema": "jobs"})


class StepRow(Base):
    """One step of a job. `token` belongs to the latest attempt: only its holder may report."""

    __tablename__ = "step"

    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.job.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    position: Mapped[int]
    title: Mapped[str]
    weight: Mapped[float] = mapped_column(server_default="1")
    state: Mapped[str] = mapped_column(server_default="pending")
    attempt: Mapped[int] = mapped_column(server_default="0")
    tries: Mapped[int] = mapped_column(server_default="0")  # attempts in this run: what the retry policy counts
    undo_tries: Mapped[int] = mapped_column(server_default="0")  # how often its undo has begun since it last ended
    token: Mapped[UUID | None]
    percent: Mapped[float | None]
    message: Mapped[str | None]
    result: Mapped[Any | None] = mapped_column(JSONB)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    run_at: Mapped[datetime | None]  # not before: the backoff of a retry, the end of a sleep
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __table_args__ = (CheckConstraint(one_of("state", STEP_STATES), name="state"), {"schema": "jobs"})


class EventRow(Base):
    """What readers see, in the order of a job (`seq`) and of its topic (`topic_seq`), both without gaps."""

    __tablename__ = "event"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.job.id", ondelete="CASCADE"))
    seq: Mapped[int | None] = mapped_column(BigInteger)
    topic: Mapped[UUID | None]
    topic_seq: Mapped[int | None] = mapped_column(BigInteger)
    type: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[Created]

    __table_args__ = (
        CheckConstraint(one_of("type", ("workflow", "job", "step", "end")), name="type"),
        Index("uq_event_job", "job_id", "seq", unique=True, postgresql_where=text("job_id IS NOT NULL")),
        Index("uq_event_topic", "topic", "topic_seq", unique=True, postgresql_where=text("topic IS NOT NULL")),
        {"schema": "jobs"},
    )


class TopicRow(Base):
    """The counter of a topic's events."""

    __tablename__ = "topic"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, server_default="0")

    __table_args__ = ({"schema": "jobs"},)


class SignalRow(Base):
    """An event sent to a job from outside, until a `wait_event` takes it."""

    __tablename__ = "signal"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.job.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    data: Mapped[Any] = mapped_column(JSONB)
    taken_by: Mapped[str | None]  # the key of the step that took it
    created_at: Mapped[Created]

    __table_args__ = ({"schema": "jobs"},)


class ProcessRow(Base):
    """A process that runs jobs, alive while its lease lasts by the database's clock."""

    __tablename__ = "process"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    host: Mapped[str]  # name, boot and pid namespace
    pid: Mapped[int]
    started: Mapped[str]  # start time: tells a living process from one that got the same pid later
    kinds: Mapped[dict[str, Any]] = mapped_column(JSONB)  # {kind: its versions}
    service: Mapped[str | None]  # whose replica it is, where services drive the runs
    lease_until: Mapped[datetime]
    created_at: Mapped[Created]

    __table_args__ = ({"schema": "jobs"},)


class InstanceRow(Base):
    """What a service's workflow engine has been given of a run, until it has been made to forget it."""

    __tablename__ = "instance"

    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    service: Mapped[str]
    created_at: Mapped[Created]

    __table_args__ = ({"schema": "jobs"},)


class LeaseRow(Base):
    """A named duty that one process at a time has. `epoch` grows with each change of hands and fences what it writes."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    holder: Mapped[UUID]
    epoch: Mapped[int] = mapped_column(BigInteger, server_default="1")

    __table_args__ = ({"schema": "jobs"},)
