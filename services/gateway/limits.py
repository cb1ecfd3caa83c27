"""Every bound of the gateway in one place. Times are seconds, sizes bytes; tests shorten them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    body_bytes: int = 4 * 1024 * 1024  # of a request
    body_seconds: float = 60.0  # for a request's body to arrive
    buffer_bytes: int = (
        1024 * 1024
    )  # of an answer that is not streamed, kept back so that a failure can still be retried

    connect_seconds: float = 5.0
    first_byte_seconds: float = 120.0  # of a stream; other answers come whole, so that total_seconds bounds them
    idle_seconds: float = 60.0  # between two chunks, be it the worker that is silent or the client that does not read
    total_seconds: float = 600.0

    attempts: int = 3  # workers that are tried before the first byte
    queue_length: int = 64  # requests that wait for a worker, per endpoint
    queue_seconds: float = 10.0
    out_seconds: float = 2.0  # for which a failed worker is left alone; doubles with each failure
    out_max_seconds: float = 30.0

    rate_quota: int = 0  # requests of one key in each `rate_seconds`; 0: as many as it likes
    rate_seconds: float = 10.0
    streams_per_key: int = 64
    access_seconds: float = 10.0  # for one check of a key
    cache_seconds: float = 15.0  # for which a positive answer about a key is believed
    recheck_seconds: float = 30.0  # between two checks of the key of a running request
    recheck_retry_seconds: float = 5.0  # to the next check when the first could not be made
    unchecked_seconds: float = 60.0  # after the last good check, a request whose key cannot be checked ends
