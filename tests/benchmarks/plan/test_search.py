from __future__ import annotations

import json
from pathlib import Path

import pytest

from parure.errors import InputError, RecordError
from parure.manifest import Precision
from parure_bench.devices import DEVICES
from parure_bench.environment import Environment
from parure_bench.plan.check import check
from parure_bench.plan.search import Ground, Promise, Setting, Unattainable, lone_latency, plan
from parure_bench.plan.simulate import Offered, simulate
from parure_bench.plan.times import SD15, Curve, Times, measured_times, roofline_times
from parure_bench.plan.workload import Workload
from parure_bench.record import Kind, Record, Series

NAMES = ("vae_encoder", "image_encoder", "reference_net", "mask_head", "unet", "vae_decoder")
BATCHES = (1, 2, 4, 8)


def record(kind: Kind, series: list[Series]) -> Record:
    environment = Environment(cpu="a processor", cores=2, memory_gb=8, system="Linux", python="3.11")
    return Record(
        kind=kind, command="parure", started="2026-01-01T00:00:00", environment=environment, series=tuple(series)
    )


def components(fixed: float, each: float) -> Record:
    return record(
        "components",
        [
            Series(
                name=name,
                labels={"batch": b, "backend": "onnxruntime", "precision": "fp32"},
                samples=(fixed + each * b,),
            )
            for name in NAMES
            for b in BATCHES
        ],
    )


def test_the_plan_has_as_many_gpus_as_the_work_needs_and_hardly_more() -> None:
    ground = Ground(measured_times([components(0.004, 0.001)]), Workload(3))
    found = plan(ground, Promise(100, 0.5), max_batches=(1, 4), replications=4, pictures=300)
    least = 100 / ground.capacity(4)
    assert least <= found.confirmed.gpus <= 2 * least + 1
    assert found.setting.max_batch == 4  # a batch costs little more than a picture
    assert found.confirmed.p99.value <= 0.5 and found.confirmed.p50.value >= found.alone
    assert found.short is None or (found.short.gpus < found.confirmed.gpus and found.short.p99.value > 0.5)


def test_a_p99_below_the_latency_of_a_lone_picture_is_told_with_the_bound() -> None:
    ground = Ground(measured_times([components(0.009, 0.001)]), Workload(10))
    assert lone_latency(ground) == pytest.approx(0.32)
    with pytest.raises(Unattainable, match=r"p99 of 300 ms cannot be met with any number of GPUs.*320 ms"):
        plan(ground, Promise(1, 0.3), max_batches=(1,))


def test_the_roofline_of_sd15_on_an_a100_gives_what_the_papers_figures_say() -> None:
    times = roofline_times(SD15, DEVICES["a100"], Precision.FP16, (1, 8), 0.32)
    settled = sum(
        times.curves[name].median(1) * n for name, n in (("unet", 30), ("vae_encoder", 1), ("vae_decoder", 1))
    )
    assert settled == pytest.approx(0.381, rel=0.1)
    assert times.largest_batch == 8


def test_times_between_measured_batches_are_interpolated() -> None:
    curve = Curve({1: (1.0, 1.2, 0.8), 4: (2.5,), 8: (4.5,)})
    assert [curve.median(b) for b in (1, 2, 4, 6, 16)] == pytest.approx([1.0, 1.5, 2.5, 3.5, 8.5])


def test_records_that_do_not_fit_are_told() -> None:
    with pytest.raises(RecordError, match="kind serve was given for component times"):
        measured_times([record("serve", [])])
    with pytest.raises(RecordError, match="hold no component times"):
        measured_times([record("components", [])])
    with pytest.raises(InputError, match="backend is 'tensorrt'; the records have onnxruntime"):
        measured_times([components(1, 1)], "tensorrt")
    one = components(1, 1)
    other = one.model_copy(update={"environment": one.environment.model_copy(update={"cpu": "another"})})
    with pytest.raises(RecordError, match="different devices"):
        measured_times([one, other])
    with pytest.raises(RecordError, match="says nothing of image_encoder"):
        Times({name: Curve({1: (1.0,)}) for name in NAMES if name != "image_encoder"}, "it").require(set(NAMES))


def served(ground: Ground, setting: Setting) -> Record:
    """A record of a server that behaves exactly as the simulation."""
    series = [
        Series(name="served", labels={"model": "tryon"}, unit="", figures={"at_work": setting.at_work, "waiting": 64})
    ]
    for name in NAMES:
        delay = setting.delay if name in ("unet", "reference_net") else 0.0
        figures = {"max_batch": float(setting.max_batch), "queue_delay": delay, "instances": 1.0, "threads": 0.0,
                   f"preferred.{setting.max_batch}": float(setting.max_batch)}  # fmt: skip
        series.append(Series(name="served", labels={"model": name}, unit="", figures=figures))
    for callers in (1, 2, 4):
        server = ground.server(setting)
        outcome = simulate(ground.times, ground.workload, server, Offered(200, concurrency=callers), ground.host, [9])[
            0
        ]
        level = {"p50": outcome.quantile(0.5), "p99": outcome.quantile(0.99), "throughput": outcome.throughput,
                 "complete": 1.0, "calls.unet": 3.0, "calls.mask_head": 3.0, "steps": 3.0, "requests": 200.0}  # fmt: skip
        labels = {"loop": "server", "ornaments": "warm", "concurrency": callers}
        series.append(Series(name="request", labels=labels, samples=outcome.latencies, figures=level))
    return record("serve", series)


def test_the_check_finds_no_error_in_a_server_that_does_what_the_simulation_says() -> None:
    times = measured_times([components(0.004, 0.001)])
    found = check(times, served(Ground(times, Workload(3)), Setting(8, 16, 0.001)))
    assert [level.load for level in found.levels] == ["1 at once", "2 at once", "4 at once"] and found.fitted == (
        "1 at once",
        "4 at once",
    )
    assert found.median_error("p50") < 0.15 and found.median_error("throughput") < 0.15
    with pytest.raises(RecordError, match="kind components cannot be checked"):
        check(times, components(1, 1))
    with pytest.raises(RecordError, match="no level of one caller"):
        check(times, record("serve", []))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "200/s"], "give both, such as --rate 200/s --p99 2s"),
        (["--rate", "200", "--p99", "2s", "--device", "a100"], "--rate is '200'; expected"),
        (["--rate", "200/s", "--p99", "2", "--device", "a100"], "--p99 is '2'; expected"),
        (["--rate", "200/s", "--p99", "2s"], "nothing says what device"),
        (["--rate", "200/s", "--p99", "2s", "--device", "z80"], "'z80' is not known"),
        (["--check", "serve.json"], "--check needs component times"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from parure.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_command_plans_and_says_so_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from parure.cli import main

    path = tmp_path / "components.json"
    path.write_text(components(0.004, 0.001).model_dump_json())
    options = ["--records", str(path), "--steps", "2", "--max-batch", "2", "--pictures", "200", "--replications", "3"]
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--rate", "50/s", "--p99", "400ms", *options, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and told["confirmed"]["gpus"] >= 1 and told["setting"]["max_batch"] in (1, 2)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--rate", "50/s", "--p99", "10ms", *options])
    assert ended.value.code == 1 and "cannot be met with any number of GPUs" in capsys.readouterr().err
