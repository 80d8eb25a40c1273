"""Runs a batch: rows in, each to one outcome; who tries what again, and what ends the whole."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from parure.batch.dispatcher import Assignment, Dispatcher
from parure.batch.engine import Engine, Made, Prepared
from parure.batch.jobs import Job, Rejected
from parure.batch.ledger import Ledger, Record
from parure.batch.order import Task
from parure.batch.results import How, Outcome
from parure.batch.stopping import Cause, Stop
from parure.batch.store import Store
from parure.batch.tally import Tally
from parure.errors import (
    CallRefused,
    InputError,
    ModelUnavailable,
    ParureError,
    ServerBusy,
    ServerError,
    ServerUnavailable,
    StorageError,
)

MOST_THREADS = 512
_STORAGE_FAILURES = 3  # in a row, after which nothing more is tried
_LAST_SECONDS = 2.0  # for threads to notice that they were given up
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds before a job is tried again


class Runner:
    """One batch. `told` is called with every outcome, from many threads."""

    def __init__(
        self,
        rows: Iterable[Job | Rejected],
        *,
        engine: Engine,
        ledger: Ledger,
        store: Store,
        dispatcher: Dispatcher,
        tally: Tally,
        stop: Stop,
        told: Callable[[Outcome], None],
        attempts: int,
        max_failures: int | None,
    ) -> None:
        self._rows, self._engine, self._ledger, self._store = rows, engine, ledger, store
        self._dispatcher, self._tally, self._stop, self._told = dispatcher, tally, stop, told
        self._attempts, self._max_failures = attempts, max_failures
        self._underway: dict[str, tuple[Task, list[Job]]] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._storage_failures = 0
        self._since = time.time()

    def run(self, grace: float, tick: Callable[[], None]) -> None:
        """Until every row has ended, or the batch is stopped; `grace`: seconds for what is then in flight.

        `tick` is called about ten times a second.
        """
        self._spawn(self._read)
        self._widen()
        until = None
        while any(thread.is_alive() for thread in list(self._threads)):
            tick()
            self._dispatcher.look()
            self._widen()
            time.sleep(0.02 if self._tally.seconds < 2 else 0.1)
            if self._stop.asked:
                until = until or time.monotonic() + grace
                if self._stop.now or time.monotonic() > until:
                    break
        if self._stop.asked:
            self._dispatcher.close()  # gives up what is in flight
            until = time.monotonic() + _LAST_SECONDS
            for thread in self._threads:
                thread.join(max(0.0, until - time.monotonic()))

    def _widen(self) -> None:
        """As many threads as pictures may be on their way: endpoints come as the batch goes."""
        while len(self._threads) < min(self._dispatcher.places, MOST_THREADS) + 1:
            self._spawn(self._serve)

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guarded, args=(target,), name=target.__name__, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except ParureError as error:
            self._stop.ask(Cause(str(error), error.exit_code))
        except Exception as error:
            self._stop.ask(Cause(f"an error in parure: {type(error).__name__}: {error}"))
            raise

    def _read(self) -> None:
        try:
            for row in self._rows:
                if isinstance(row, Rejected):
                    self._settle(Outcome(row, Record("", "rejected", row.reason, ended=time.time())))
                    if self._stop.asked:
                        return
                elif not self._dispatcher.offer(Task(row)):
                    return
        finally:
            self._dispatcher.end()

    def _serve(self) -> None:
        while (assignment := self._dispatcher.next()) is not None:
            try:
                self._work(assignment)
            except BaseException:
                self._dispatcher.release(assignment)
                raise

    def _work(self, assignment: Assignment) -> None:
        """One attempt at one job; it ends by releasing the assignment, or by putting its job back."""
        task = assignment.task
        prepared = None
        try:
            prepared = self._engine.prepare(task.job)
            if self._known(prepared, task):
                self._dispatcher.release(assignment)
                return
            task.attempts += 1
            made = self._engine.make(task.job, prepared, assignment.endpoint.url, assignment.connection)
        except (InputError, CallRefused) as error:
            self._finish(assignment, prepared, Record("", "rejected", str(error)))
        except StorageError as error:
            self._storage_failed(assignment, prepared, error)
        except ServerError as error:
            self._server_failed(assignment, prepared, error)
        except Exception as error:  # one row that finds a mistake in parure or below must not end all others
            self._crashed(assignment, prepared, error)
        else:
            self._storage_failures = 0
            self._finish(assignment, prepared, _record(made), made)

    def _known(self, prepared: Prepared, task: Task) -> bool:
        """Whether the row has ended, or will with another one: rows with equal keys are computed once."""
        with self._lock:
            first, followers = self._underway.setdefault(prepared.key, (task, []))
            if first is not task:
                followers.append(task.job)
                return True
        record = self._ledger.get(prepared.key)
        if record is None or not record.final or not self._there(record):
            return False
        self._settle_all(prepared, task, record, "resumed" if record.ended < self._since else "shared")
        return True

    def _there(self, record: Record) -> bool:
        """False where somebody has removed what was made."""
        return record.status != "done" or (self._store.exists(record.picture) and self._store.exists(record.mask))

    def _settle_all(self, prepared: Prepared | None, task: Task, record: Record, how: How) -> None:
        with self._lock:
            followers = self._underway.pop(prepared.key, (task, []))[1] if prepared else []
        self._settle(Outcome(task.job, record, how))
        for job in followers:
            self._settle(Outcome(job, record, "shared" if how == "new" else how))

    def _finish(
        self, assignment: Assignment, prepared: Prepared | None, record: Record, made: Made | None = None
    ) -> None:
        """Record how the job ended, and only then tell it."""
        task = assignment.task
        record = replace(
            record,
            key=prepared.key if prepared else "",
            endpoint=assignment.endpoint.url if task.attempts else "",
            attempts=task.attempts,
            ended=time.time(),
        )
        try:
            if prepared is not None:
                self._ledger.append(record)
        except StorageError as error:
            self._stop.ask(Cause(f"{error}; make room there, and run the same command again"))
        else:
            self._settle_all(prepared, task, record, "new")
        pace = (made.seconds["total"] - made.seconds.get("queue", 0.0)) / max(made.steps, 1) if made else None
        self._dispatcher.release(assignment, pace)

    def _storage_failed(self, assignment: Assignment, prepared: Prepared | None, error: StorageError) -> None:
        self._storage_failures += 1
        if self._storage_failures >= _STORAGE_FAILURES:
            self._stop.ask(Cause(f"{error}; see to that, and run the same command again"))
        if self._stop.asked:
            self._dispatcher.release(assignment)
        else:
            self._finish(assignment, prepared, Record("", "failed", str(error)))

    def _server_failed(self, assignment: Assignment, prepared: Prepared | None, error: ServerError) -> None:
        """Another attempt, unless the job itself may be what is wrong, and had its share of them.

        A server that is not there, or full, says nothing about the job.
        """
        task = assignment.task
        if not isinstance(error, ServerBusy):
            self._dispatcher.suspect(assignment, str(error))
        innocent = isinstance(error, ServerUnavailable | ModelUnavailable) or assignment.connection.given_up
        task.counted += not innocent
        if self._stop.asked:
            self._dispatcher.release(assignment)
        elif task.counted < self._attempts and (innocent or self._tally.may_retry()):
            longest = min(_PAUSE * 2 ** min(task.attempts, 10), _LONGEST_PAUSE)
            self._dispatcher.put_back(assignment, random.uniform(0, longest))
        else:
            self._finish(assignment, prepared, Record("", "failed", str(error)))

    def _crashed(self, assignment: Assignment, prepared: Prepared | None, error: Exception) -> None:
        """A mistake in the code, unless it is only that the connection was closed meanwhile."""
        if self._stop.asked:
            self._dispatcher.release(assignment)
        elif assignment.connection.given_up:
            self._dispatcher.put_back(assignment, 0.0)
        else:
            reason = f"an error in parure: {type(error).__name__}: {error}"
            self._finish(assignment, prepared, Record("", "failed", reason))

    def _settle(self, outcome: Outcome) -> None:
        self._told(outcome)
        self._tally.add(outcome)
        if self._max_failures is not None and self._tally.failures > self._max_failures:
            self._stop.ask(Cause(f"more than {self._max_failures} jobs have failed (--max-failures)"))


def _record(made: Made) -> Record:
    return Record("", "done", picture=made.picture, mask=made.mask, seconds=made.seconds)
