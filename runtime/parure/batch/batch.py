"""A batch from end to end: job file -> pictures, masks, a table of results, a page to look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from parure.batch import page, results
from parure.batch.addresses import endpoint_urls
from parure.batch.dispatcher import Dispatcher
from parure.batch.endpoint import Connect, Connector, check_alive, is_live
from parure.batch.engine import Engine, LocalEngine
from parure.batch.jobs import count_jobs, read_jobs
from parure.batch.ledger import Ledger
from parure.batch.order import WINDOW, Order
from parure.batch.progress import Progress
from parure.batch.results import Outcome
from parure.batch.runner import Runner
from parure.batch.stopping import Stop, stop_on_signals
from parure.batch.store import Store, open_store
from parure.batch.tables import pyarrow
from parure.batch.tally import Tally
from parure.errors import ParureError, StorageError

_DISCOVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What to make, with what, and where to. Times are in seconds."""

    jobs: str
    out: str
    endpoints: tuple[str, ...] = ()
    endpoints_file: Path | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    deadline: float = 300.0  # of one picture
    attempts: int = 4  # at one job, where it may be the job's fault
    max_failures: int | None = None
    patience: float = 300.0  # without any endpoint
    grace: float = 60.0  # for what is in flight, after a stop
    per_endpoint: int | None = None  # pictures on their way to one endpoint
    window: int = WINDOW  # rows that are looked ahead for those with the same ornament
    quiet: bool = False


@dataclass(frozen=True)
class Summary:
    """How a batch ended. `ok`: every row of the job file is done."""

    ok: bool
    stopped: str | None
    exit_code: int
    total: int
    done: int
    rejected: int
    failed: int
    how: dict[str, int]
    retried: int
    seconds: float
    endpoints: dict[str, int]
    where: str
    reasons: list[tuple[int, str, str]] = field(default_factory=list)


def run_batch(
    plan: Plan,
    *,
    connect: Connect | None = None,
    check: Callable[[str], None] = check_alive,
    live: Callable[[str], bool] = is_live,
    console: Console | None = None,
) -> Summary:
    """Run, or go on with what an earlier run left. `connect`, `check` and `live` replace how endpoints are reached.

    Raises `InputError` for a job file, an endpoint or a place that cannot be used, `ServerUnavailable` where no
    endpoint answers, `BundleMismatch` where endpoints serve different bundles. Whatever happens after that is an
    outcome of a row, or the reason why the batch stopped.
    """
    pyarrow()
    tally, stop = Tally(count_jobs(plan.jobs)), Stop()
    urls = endpoint_urls(plan.endpoints, plan.endpoints_file)
    store = open_store(plan.out)
    connect = connect or Connector(plan.deadline, plan.per_endpoint)
    dispatcher = Dispatcher(connect, check, live, stop, Order(plan.window), plan.patience)
    progress = Progress(console or Console(stderr=True), tally, dispatcher, quiet=plan.quiet)
    unwritten = None
    with Ledger(store) as ledger, stop_on_signals(stop):
        store.sweep()
        try:
            dispatcher.start(urls)
            _run(plan, store, ledger, dispatcher, tally, stop, progress)
        except StorageError as error:
            unwritten = str(error)
        finally:
            stop.end()
            dispatcher.close()
    return _summary(tally, stop, dispatcher, store, unwritten)


def _run(
    plan: Plan, store: Store, ledger: Ledger, dispatcher: Dispatcher, tally: Tally, stop: Stop, progress: Progress
) -> None:
    """Every row to its outcome, in the table and on the page. Raises `StorageError` where these cannot be written."""
    gallery, discovery = page.Gallery(), _Discovery(plan, dispatcher)
    with results.results_table(store) as table, _engine(plan, store, dispatcher) as engine:

        def told(outcome: Outcome) -> None:
            table.add(outcome)
            gallery.add(outcome)

        def tick() -> None:
            progress.tick()
            discovery.look()
            table.flush()

        runner = Runner(
            read_jobs(plan.jobs),
            engine=engine,
            ledger=ledger,
            store=store,
            dispatcher=dispatcher,
            tally=tally,
            stop=stop,
            told=told,
            attempts=plan.attempts,
            max_failures=plan.max_failures,
        )
        with progress.shown():
            runner.run(plan.grace, tick)
    if not stop.now:
        gallery.write(store, f"Batch {plan.jobs}")


class _Discovery:
    """Looks from time to time for endpoints that have been added to the file, or to a DNS name."""

    def __init__(self, plan: Plan, dispatcher: Dispatcher) -> None:
        self._plan, self._dispatcher = plan, dispatcher
        self._looked = time.monotonic()

    def look(self) -> None:
        if time.monotonic() - self._looked < _DISCOVERY_SECONDS:
            return
        self._looked = time.monotonic()
        with suppress(ParureError):  # the file is just being written, or holds a mistake: those that are known go on
            self._dispatcher.add(endpoint_urls(self._plan.endpoints, self._plan.endpoints_file))


@contextmanager
def _engine(plan: Plan, store: Store, dispatcher: Dispatcher) -> Iterator[Engine]:
    engine: Engine
    if plan.engine == "ray":
        from parure.batch.ray_engine import RayEngine

        engine = RayEngine(
            store.where, dispatcher.manifest, dispatcher.identity, plan.deadline, plan.ray_address, dispatcher.places
        )
    else:
        engine = LocalEngine(store, dispatcher.manifest, dispatcher.identity)
    try:
        yield engine
    finally:
        engine.close()


def _summary(tally: Tally, stop: Stop, dispatcher: Dispatcher, store: Store, unwritten: str | None) -> Summary:
    complete = stop.cause is None and unwritten is None
    ok = complete and not tally.failures
    stopped = stop.cause.text if stop.cause else unwritten
    return Summary(
        ok=ok,
        stopped=stopped,
        exit_code=0 if ok else stop.cause.exit_code if stop.cause else 1,
        total=tally.ended.total() if complete else max(tally.total, tally.ended.total()),
        done=tally.ended["done"],
        rejected=tally.ended["rejected"],
        failed=tally.ended["failed"],
        how=dict(tally.how),
        retried=tally.retried,
        seconds=round(tally.seconds, 3),
        endpoints={endpoint.url: endpoint.done for endpoint in dispatcher.endpoints},
        where=store.where,
        reasons=tally.reasons,
    )
