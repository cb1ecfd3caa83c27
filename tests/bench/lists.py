"""Pages of lists over HTTP: the same pages with 1,000 rows and with 100,000 in each table."""

import json
import time

import psycopg

from tests.bench.client import Connection, in_process
from tests.bench.figures import Figure, percentile
from tests.bench.server import Stepway

FEW, MANY = 1_000, 100_000
LISTS = ("/models", "/jobs", "/workflows", "/endpoints")
PAGES = 5  # that follow one another, from the newest on

# The rows of each table, as the service itself would have left them.
_ROWS = (
    """INSERT INTO platform.model (id, name, provider_type, uri, icon, modality, state, digest, size, facts, created_at)
       SELECT gen_random_uuid(), 'model ' || n, 'disk', '/models/' || n || '/model.gguf', 'icons/models/chat.png', '{llm}',
              'active', 'sha256:' || repeat('0', 64), n, '{"format": "gguf", "architecture": "llama", "parameters": 135000000}',
              now() - make_interval(secs => n) FROM generate_series(1, %(rows)s::int) n""",
    """INSERT INTO platform.workflow (id, type, owner_id, status, current_step, total_steps, fields, field_steps, created_at)
       SELECT gen_random_uuid(), 'local_model_onboarding', (SELECT id FROM platform."user" LIMIT 1), 'completed', 6, 6,
              jsonb_build_object('name', 'model ' || n, 'modality', 'llm', 'provider_type', 'disk', 'uri', '/models/' || n),
              '{"name": 3, "modality": 1, "provider_type": 2, "uri": 3}', now() - make_interval(secs => n)
         FROM generate_series(1, %(rows)s::int) n""",
    """WITH job AS (INSERT INTO jobs.job (id, kind, version, state, owner_id, input, created_at, started_at, ended_at)
                    SELECT gen_random_uuid(), 'scan_model', 1, 'succeeded', (SELECT id FROM platform."user" LIMIT 1), '{}',
                           now() - make_interval(secs => n), now() - make_interval(secs => n), now()
                      FROM generate_series(1, %(rows)s::int) n RETURNING id)
       INSERT INTO jobs.step (job_id, key, position, title, state, attempt, started_at, ended_at)
       SELECT job.id, 'step-' || k, k, 'Step ' || k, 'succeeded', 1, now(), now() FROM job, generate_series(1, 3) k""",
    """INSERT INTO platform.endpoint (id, project_id, name, slug, model_id, cluster_id, deploy_config, phase, state, sealed,
                                      created_at)
       SELECT gen_random_uuid(), (SELECT id FROM platform.project LIMIT 1), 'endpoint ' || n, 'endpoint-' || n,
              (SELECT id FROM platform.model LIMIT 1), (SELECT id FROM platform.cluster WHERE name = 'elsewhere'),
              '{"concurrent_requests": 2}', 'stopped', 'stopped', '', now() - make_interval(secs => n)
         FROM generate_series(1, %(rows)s::int) n""",
)
_CLUSTER = """INSERT INTO platform.cluster (id, name, kind, state, icon, access, facts, epoch, revision)
              VALUES (gen_random_uuid(), 'elsewhere', 'kubernetes', 'unavailable', NULL, '{}', '{}', 0, 1)"""


def run(quick: bool) -> list[Figure]:
    count = 100 if quick else 400
    with Stepway() as small, Stepway() as large:
        for stepway, rows in ((small, FEW), (large, MANY)):
            _fill(stepway, rows)
        places = [(stepway.host, stepway.key) for stepway in (small, large)]
        in_process(read_pages, places, 20)  # warms up
        few, many = in_process(read_pages, places, count)
    taken = {FEW: few, MANY: many}
    return [
        Figure(
            f"GET {path}, p95, {MANY:,} rows", percentile(taken[MANY][path], 0.95) * 1000, "ms",
            percentile(taken[FEW][path], 0.95) * 1000, f"ms with {FEW:,}", at_most=2,
            note=f"p50 {percentile(taken[MANY][path], 0.5) * 1000:.1f} and {percentile(taken[FEW][path], 0.5) * 1000:.1f} ms",
        )
        for path in LISTS
    ]  # fmt: skip


def _fill(stepway: Stepway, rows: int) -> None:
    with psycopg.connect(stepway.database_url, autocommit=True) as connection:
        connection.execute(_CLUSTER)
        for statement in _ROWS:
            connection.execute(statement.encode(), {"rows": rows})
        connection.execute("VACUUM ANALYZE")  # what autovacuum would soon have done


async def read_pages(places: list[tuple[tuple[str, int], str]], count: int) -> list[dict[str, list[float]]]:
    """For each place, seconds for `count` pages per list: its first pages, one after the other, again and again.

    Lists and places take turns, so that what else the machine does meets all alike.
    """
    connections = [await Connection.open(host, key) for host, key in places]
    taken: list[dict[str, list[float]]] = [{path: [] for path in LISTS} for _ in places]
    cursors: list[dict[str, str | None]] = [dict.fromkeys(LISTS) for _ in places]
    for number in range(count):
        for path in LISTS:
            for connection, seen, cursor in zip(connections, taken, cursors, strict=True):
                at = cursor[path] if number % PAGES else None
                began = time.perf_counter()
                page = await connection.request("GET", path + (f"?cursor={at}" if at else ""))
                seen[path].append(time.perf_counter() - began)
                cursor[path] = json.loads(page)["next_cursor"]
    return taken
