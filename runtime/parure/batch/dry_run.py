"""Every row checked as a run would check it, and nothing made."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from parure.batch.addresses import endpoint_urls
from parure.batch.batch import Plan, Summary
from parure.batch.endpoint import Connector
from parure.batch.engine import asked
from parure.batch.jobs import Job, Rejected, read_jobs
from parure.batch.keys import Reader
from parure.batch.ledger import Record
from parure.batch.results import Outcome
from parure.batch.tally import Tally
from parure.errors import InputError, ParureError, ServerUnavailable, StorageError
from parure.manifest import Manifest
from parure.request import Asked, read_request

_PATIENCE = 30.0  # seconds for an endpoint to tell
_THREADS = 8
_AT_ONCE = 256


def dry_run(plan: Plan) -> Summary:
    """Reads and decodes all inputs. Raises `ServerUnavailable` where no endpoint tells what its bundle takes."""
    manifest = _manifest(plan)
    tally, reader = Tally(0), Reader()
    with ThreadPoolExecutor(_THREADS) as pool:
        for rows in _chunks(read_jobs(plan.jobs)):
            for outcome in pool.map(lambda row: _checked(row, reader, manifest), rows):
                tally.add(outcome)
    ok = not tally.failures
    return Summary(
        ok=ok,
        stopped=None,
        exit_code=0 if ok else 1,
        total=tally.ended.total(),
        done=tally.ended["done"],
        rejected=tally.ended["rejected"],
        failed=tally.ended["failed"],
        how={},
        retried=0,
        seconds=round(tally.seconds, 3),
        endpoints={},
        where=plan.out,
        reasons=tally.reasons,
    )


def _manifest(plan: Plan) -> Manifest:
    reasons = []
    for url in endpoint_urls(plan.endpoints, plan.endpoints_file):
        try:
            connection = Connector(_PATIENCE)(url)
        except ParureError as error:
            reasons.append(str(error))
            continue
        connection.tryon.close()
        return connection.manifest
    raise ServerUnavailable("no endpoint answers: " + "; ".join(reasons))


def _chunks(rows: Iterable[Job | Rejected]) -> Iterator[list[Job | Rejected]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _AT_ONCE)):
        yield chunk


def _checked(row: Job | Rejected, reader: Reader, manifest: Manifest) -> Outcome:
    now = time.time()
    if isinstance(row, Rejected):
        return Outcome(row, Record("", "rejected", row.reason, ended=now))
    try:
        inputs = reader.read(row)
        read_request(Asked(**asked(row, inputs)), manifest)
    except InputError as error:
        return Outcome(row, Record("", "rejected", str(error), ended=now))
    except StorageError as error:
        return Outcome(row, Record("", "failed", str(error), ended=now))
    return Outcome(row, Record("", "done", ended=now))
