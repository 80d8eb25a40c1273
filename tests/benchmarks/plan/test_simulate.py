"""The simulation against closed-form results, and what must hold of any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import simpy

from parure_bench.plan.batcher import Batcher, Batching
from parure_bench.plan.device import SharedDevice
from parure_bench.plan.simulate import Host, Offered, Outcome, Server, simulate
from parure_bench.plan.times import Curve, Times
from parure_bench.plan.workload import LAST, Workload

NAMES = ("vae_encoder", "image_encoder", "reference_net", "mask_head", "unet", "vae_decoder")


@dataclass(frozen=True)
class OneCall(Workload):
    """A picture that is one call."""

    def opening(self, *, cached: bool) -> tuple[str, ...]:
        return ()


def times(fixed: float, each: float) -> Times:
    """Every component takes `fixed` for a batch and `each` for a picture in it."""
    return Times({name: Curve({b: (fixed + each * b,) for b in (1, 2, 4, 8)}) for name in NAMES}, "a test")


def server(max_batch: int = 8, delay: float = 0.001, **places: int) -> Server:
    return Server({name: Batching(max_batch, (max_batch,), delay) for name in NAMES}, **places)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_server_with_fixed_service_waits_as_m_d_1(load: float) -> None:
    alone = Server({LAST: Batching(1)}, at_work=1, waiting=10**9)
    outcome = simulate(times(0.5, 0.5), OneCall(0), alone, Offered(30_000, rate=load), Host(), [0])[0]
    waited = float(np.mean(outcome.latencies)) - 1
    assert waited == pytest.approx(load / (2 * (1 - load)), rel=0.06)  # Pollaczek and Khinchine
    assert outcome.utilisation == pytest.approx(load, rel=0.02)


def test_processor_sharing_takes_as_long_as_m_g_1_ps() -> None:
    """With any number of instances on one device: mean latency = service / (1 - load)."""
    shared = Server({LAST: Batching(1, instances=10**6)}, at_work=10**6, gathers=False)
    outcome = simulate(times(0.5, 0.5), OneCall(0), shared, Offered(20_000, rate=0.6), Host(), [1])[0]
    assert float(np.mean(outcome.latencies)) == pytest.approx(1 / (1 - 0.6), rel=0.06)


def test_callers_alone_and_together_obey_littles_law() -> None:
    single = simulate(times(0.01, 0.0), Workload(4), server(delay=0.0), Offered(20, concurrency=1), Host(), [0])[0]
    assert single.latencies == pytest.approx([0.14] * len(single.latencies))  # 2 + 3 a step
    many = simulate(times(0.01, 0.002), Workload(4), server(), Offered(400, concurrency=6), Host(), [0])[0]
    assert many.throughput * float(np.mean(many.latencies)) == pytest.approx(6, rel=0.05)


def test_batches_form_and_serve_more_where_they_are_cheaper() -> None:
    def busy(max_batch: int) -> Outcome:
        offered = Offered(200, concurrency=8)
        return simulate(times(0.009, 0.001), Workload(6), server(max_batch), offered, Host(), [0])[0]

    alone, together = busy(1), busy(8)
    assert alone.batches["unet"] == 1 and together.batches["unet"] > 4
    assert together.throughput > 3 * alone.throughput


@pytest.mark.parametrize(("rate", "places"), [(1.0, {}), (40.0, {"at_work": 2, "waiting": 3})])
def test_every_picture_that_arrived_is_done_refused_or_in_flight(rate: float, places: dict[str, int]) -> None:
    for limit in (float("inf"), 0.2):
        outcome = simulate(
            times(0.005, 0.005), Workload(3), server(**places), Offered(150, rate=rate), Host(), [2], limit
        )[0]
        assert outcome.arrived == outcome.done + outcome.refused + outcome.in_flight
    endless = simulate(times(0.005, 0.005), Workload(3), server(**places), Offered(150, rate=rate), Host(), [2])[0]
    assert endless.arrived == 150 and endless.in_flight == 0
    assert bool(endless.refused) == bool(places)


def test_the_same_seed_gives_the_same_outcome() -> None:
    def run(seed: int) -> tuple[float, ...]:
        return simulate(times(0.01, 0.002), Workload(3), server(), Offered(50, rate=5), Host(), [seed])[0].latencies

    assert run(1) == run(1) != run(2)


def test_the_host_of_a_cpu_competes_with_the_components_and_that_of_a_gpu_does_not() -> None:
    def throughput(demand: float) -> float:
        host = Host(0.01, demand)
        return simulate(times(0.01, 0.0), Workload(4), server(1), Offered(100, concurrency=8), host, [0])[0].throughput

    assert throughput(0.0) > 1.4 * throughput(1.0)


def test_executions_side_by_side_share_the_device() -> None:
    env = simpy.Environment()
    device, ended = SharedDevice(env), {}
    for name, start, seconds, demand in (
        ("a", 0, 1.0, 1.0),
        ("b", 0.5, 1.0, 1.0),
        ("c", 10, 1.0, 0.5),
        ("d", 10, 2.0, 0.5),
    ):
        timer = env.timeout(start)
        timer.callbacks.append(  # type: ignore[union-attr]
            lambda _, n=name, s=seconds, d=demand: device.run(s, d, lambda: ended.update({n: env.now}))  # type: ignore[misc]
        )
    env.run()
    assert ended == pytest.approx({"a": 1.5, "b": 2.0, "c": 11.0, "d": 12.0})
    assert device.busy == pytest.approx(2.0 + 1.0 + 0.5)


def batches(arrivals: list[float], batching: Batching) -> list[tuple[float, int]]:
    """When executions of 1 s begin, and how large they are."""
    env, begun = simpy.Environment(), []
    device = SharedDevice(env)

    def seconds(size: int) -> float:
        begun.append((round(env.now, 3), size))
        return 1.0

    batcher = Batcher(env, device, batching, seconds)
    for arrival in arrivals:
        timer = env.timeout(arrival)
        timer.callbacks.append(lambda _: batcher.call())  # type: ignore[union-attr]
    env.run()
    return begun


def test_batches_form_as_in_tritons_dynamic_batcher() -> None:
    # without a delay the first goes alone, and those that come meanwhile go together
    assert batches([0, 0, 0, 0.5], Batching(8, (8,))) == [(0, 1), (1, 3)]
    # with one, whoever comes within it joins
    assert batches([0, 0.1, 0.2, 0.9], Batching(8, (8,), delay=0.3)) == [(0.3, 3), (1.3, 1)]
    # a preferred size goes at once, the largest that fits
    assert batches([0, 0.1, 0.2, 0.3], Batching(8, (2, 4), delay=9.0))[0] == (0.1, 2)
    # and so does a full batch
    assert batches([0, 0, 0], Batching(2, (), delay=9.0))[0] == (0, 2)
