"""The server loop in simulated time: arrivals -> places at work -> the calls of every picture -> latencies."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import simpy

from parure_bench.plan.batcher import Batcher, Batching
from parure_bench.plan.device import SharedDevice
from parure_bench.plan.gathering import Gathering
from parure_bench.plan.times import Times
from parure_bench.plan.workload import LAST, Workload

Process = Generator[simpy.Event, object, None]
WARMUP = 0.1  # share of the pictures that are not counted
PERCENT_LATE = 0.01


@dataclass(frozen=True)
class Server:
    """One GPU or host with the server loop. `gathers`: pictures wait for one another before large components."""

    batching: dict[str, Batching]
    at_work: int = 16
    waiting: int = 64
    gathers: bool = True


@dataclass(frozen=True)
class Host:
    """What a picture costs beside its components: seconds of one core around each call.

    `demand` is the share of the components' device that this takes: 0 where they run on a GPU, 1 / cores on a CPU.
    """

    seconds_per_call: float = 0.0
    demand: float = 0.0


@dataclass(frozen=True)
class Offered:
    """`pictures` at random, `rate` a second, or when they are `due`, or by `concurrency` callers who ask again at once."""

    pictures: int
    rate: float | None = None
    concurrency: int = 0
    due: tuple[float, ...] | None = None

    @property
    def warmup(self) -> int:
        """Pictures that do not count; of a given schedule all do."""
        return 0 if self.due is not None else int(WARMUP * self.pictures)


@dataclass(frozen=True)
class Outcome:
    """Latencies in seconds of pictures after the warm-up, in the order of their end; `inf` for refused ones. `ends`: when.

    `in_flight` pictures were not done when the simulation was stopped. `batches`: mean batch of each component.
    """

    latencies: tuple[float, ...]
    ends: tuple[float, ...]
    arrived: int
    done: int
    refused: int
    in_flight: int
    seconds: float
    utilisation: float
    batches: dict[str, float]
    hopeless: bool = False

    @property
    def throughput(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    def quantile(self, share: float) -> float:
        """Of the latencies; `inf` where too many were refused."""
        if self.hopeless or not self.latencies:
            return float("inf")
        return float(np.quantile(self.latencies, share, method="higher"))


@dataclass
class _Count:
    arrived: int = 0
    done: int = 0
    refused: int = 0
    late: int = 0
    latencies: list[tuple[int, float, float]] = field(default_factory=list)
    """Number, latency, and the moment of the end."""


class Simulation:
    """One run, from an empty server until `offered.pictures` have come and gone."""

    def __init__(
        self, times: Times, workload: Workload, server: Server, offered: Offered, host: Host, *, seed: int = 0,
        give_up_above: float = float("inf"),
    ) -> None:  # fmt: skip
        """`give_up_above`: stop once more pictures than 1 % must be later than this many seconds."""
        self.env = simpy.Environment()
        self.device = SharedDevice(self.env)
        self.generator = np.random.Generator(np.random.Philox(seed))
        self.server, self.workload, self.offered, self.host = server, workload, offered, host
        self.batchers = {name: self._batcher(times, name, server.batching[name]) for name in workload.counts()}
        self.gathering = Gathering(self.env)
        self.desk = simpy.Resource(self.env, server.at_work)
        self.count = _Count()
        self.limit = give_up_above
        self.over = self.env.event()

    def run(self) -> Outcome:
        offered = self.offered
        if offered.due is not None:
            self.env.process(self._arrivals(np.diff((0.0, *offered.due)).tolist()))
        elif offered.rate is not None:
            self.env.process(self._arrivals(self.generator.exponential(1 / offered.rate, offered.pictures).tolist()))
        else:
            for _ in range(offered.concurrency):
                self.env.process(self._caller())
        self.env.run(self.over)
        count, first = self.count, self.offered.warmup
        now = self.env.now
        return Outcome(
            latencies=tuple(latency for number, latency, _ in count.latencies if number >= first),
            ends=tuple(end for number, _, end in count.latencies if number >= first),
            arrived=count.arrived,
            done=count.done,
            refused=count.refused,
            in_flight=count.arrived - count.done - count.refused,
            seconds=now,
            utilisation=self.device.busy / now if now else 0.0,
            batches={name: b.calls / b.executions for name, b in self.batchers.items() if b.executions},
            hopeless=self._hopeless(),
        )

    def _batcher(self, times: Times, name: str, batching: Batching) -> Batcher:
        curve = times.curves[name]
        return Batcher(self.env, self.device, batching, lambda batch: curve.drawn(batch, self.generator))

    def _arrivals(self, gaps: list[float]) -> Process:
        for gap in gaps:
            yield self.env.timeout(gap)
            self.env.process(self._picture())

    def _caller(self) -> Process:
        while self.count.arrived < self.offered.pictures:
            yield self.env.process(self._picture())

    def _picture(self) -> Process:
        number, since = self.count.arrived, self.env.now
        self.count.arrived += 1
        if self.desk.count >= self.server.at_work and len(self.desk.queue) >= self.server.waiting:
            self.count.refused += 1
            self._ended(number, float("inf"))
            return
        cached = bool(self.generator.random() < self.workload.hits)
        with self.desk.request() as place:
            yield place
            yield from self._calls(self.workload.opening(cached=cached), number)
            yield from self._steps(number)
            yield from self._calls((LAST,), number)
        self.count.done += 1
        self._ended(number, self.env.now - since)

    def _steps(self, number: int) -> Process:
        """As `parure.ahead`: the next step's mask is made beside this step's U-Net."""
        masks = self.env.process(self._calls(self.workload.mask(0), number))
        for k in range(self.workload.steps):
            yield masks
            masks = self.env.process(self._calls(self.workload.mask(k + 1), number))
            yield from self._calls(self.workload.unet(), number)

    def _calls(self, components: Sequence[str], number: int) -> Process:
        for component in components:
            yield from self._call(component, number)

    def _call(self, component: str, number: int) -> Process:
        if self.host.seconds_per_call:
            yield self._at_host()
        if component == LAST:
            self.gathering.leave(number)
        elif self.server.gathers:
            yield from self.gathering.wait(component, number)
        since = self.env.now
        yield self.batchers[component].call()
        self.gathering.called(component, self.env.now - since)

    def _at_host(self) -> simpy.Event:
        if not self.host.demand:
            return self.env.timeout(self.host.seconds_per_call)
        ready = self.env.event()
        self.device.run(self.host.seconds_per_call, self.host.demand, lambda: ready.succeed())
        return ready

    def _ended(self, number: int, latency: float) -> None:
        count = self.count
        count.latencies.append((number, latency, self.env.now))
        count.late += latency > self.limit and number >= self.offered.warmup
        ended = count.done + count.refused
        if (ended == self.offered.pictures or self._hopeless()) and not self.over.triggered:
            self.over.succeed()

    def _hopeless(self) -> bool:
        return self.count.late > PERCENT_LATE * (self.offered.pictures - self.offered.warmup) + 1


def simulate(
    times: Times, workload: Workload, server: Server, offered: Offered, host: Host, seeds: Sequence[int],
    give_up_above: float = float("inf"),
) -> list[Outcome]:  # fmt: skip
    """One outcome per seed, up to the first that is hopeless."""
    times.require(set(workload.counts()))
    outcomes: list[Outcome] = []
    for seed in seeds:
        outcomes.append(
            Simulation(times, workload, server, offered, host, seed=seed, give_up_above=give_up_above).run()
        )
        if outcomes[-1].hopeless:
            break
    return outcomes
