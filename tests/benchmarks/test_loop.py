"""`parure bench components` and `loop` on a real bundle: what they record, and what they refuse."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

from parure.bundle import Bundle
from parure.cli import main
from parure.errors import InputError, ParureError
from parure.executor import Array, Arrays
from parure.onnx_executor import OnnxExecutor
from parure_bench.curves import Curve
from parure_bench.loop import measure_loop
from parure_bench.memory import peak_bytes
from parure_bench.peers import Setting, executor_peer
from parure_bench.record import load_record
from parure_bench.recording import Run, progress, recording
from parure_bench.sampling import Rounds
from parure_bench.shots import drawn_shot
from parure_bench.torch_peer import TorchExecutor, open_checkpoint, torch_components
from parure_export.checkpoint import new_checkpoint
from parure_export.model.geometry import DEMO


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *map(str, arguments), "--settle", "0"])
    code = exit_.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module", autouse=True)
def small_limits() -> Iterator[None]:
    """The limit of this machine is measured on small products: the tests want no figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parure_bench.devices.MATMUL_SIDE", 64)
        patch.setattr("parure_bench.devices.COPIED_BYTES", 1 << 16)
        yield


def test_components_are_measured_by_batch_and_backend(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "components.json"
    assert run("components", tiny_bundle, "--component", "mask_head", "--component", "unet", "--batch", "1,2",
               "--backend", "onnxruntime", "--rounds", "3", "--warmup", "1", "--no-memory", "--out", out) == 0  # fmt: skip
    record = load_record(out)
    assert [(s.name, s.labels["batch"]) for s in record.series] == [
        ("mask_head", 1), ("mask_head", 2), ("unet", 1), ("unet", 2)
    ]  # fmt: skip
    flops = Bundle.open(tiny_bundle).manifest.component("unet").flops
    for series in record.find("unet"):
        assert len(series.samples) == 3 and series.labels["precision"] == "fp32"
        assert series.figures["flops"] == flops * int(series.labels["batch"])
        assert series.figures["share_of_peak"] > 0 and series.figures["per_second"] > 0
    assert any("limit" in note for note in record.notes)


def test_memory_is_that_of_a_process_of_its_own(tiny_bundle: Path) -> None:
    assert 0 < peak_bytes(tiny_bundle, "onnxruntime", "mask_head", 1) < 200e6
    with pytest.raises(ParureError, match="measuring the memory of wings"):
        peak_bytes(tiny_bundle, "onnxruntime", "wings", 1)


def test_every_way_makes_the_same_picture_and_the_naive_ones_call_reference_net_at_every_step(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "loop.json"
    assert run("loop", tiny_bundle, "--checkpoint", tiny_checkpoint, "--steps", "3", "--guidance", "1", "--guidance", "2",
               "--box-mask", "--mode", "mask=9", "--rounds", "2", "--warmup", "0", "--out", out) == 0  # fmt: skip
    record = load_record(out)
    pictures = record.find("picture")
    assert len(pictures) == 2 * (5 + 4) + 2 * (4 + 3)  # guided: exact, new, naive, joined, mode; PyTorch without mode
    assert all(len(series.samples) == 2 for series in pictures)
    assert all(series.figures["psnr_db"] > 60 for series in pictures if series.labels["loop"] != "mask=9")
    naive = record.find("picture", backend="torch", loop="naive")
    assert all(series.figures["speedup"] == 1 for series in naive) and len(naive) == 4

    def calls(loop: str, ornament: str, mask: str) -> float:
        found = record.find(
            "reference_net", backend="onnxruntime", loop=loop, ornament=ornament, mask=mask, guidance=1.0
        )
        return found[0].figures["calls_per_picture"]

    assert [calls("exact", "new", "loop"), calls("naive", "new", "loop"), calls("mask=9", "kept", "loop")] == [4, 3, 2]
    assert [calls("exact", "kept", "box"), calls("naive", "new", "box")] == [1, 3]
    for overhead in record.find("loop overhead"):
        assert all(0 <= share < 1 for share in overhead.samples)
    assert {span.name for span in record.timeline} >= {"unet", "reference_net", "vae_decoder"}


def test_a_curve_has_a_series_for_every_point_and_a_slope(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "loop.json"
    assert run("loop", tiny_bundle, "--steps", "1", "--rounds", "2", "--warmup", "0", "--out", out,
               "--curve", "steps=1:4", "--curve", "batch=1:3", "--curve", "ornament-repeats=1:4") == 0  # fmt: skip
    record = load_record(out)
    assert [series.labels["steps"] for series in record.find("picture", curve="steps")] == [1, 2, 4]
    assert [series.labels["batch"] for series in record.find("step", curve="batch")] == [1, 2, 3]
    done = [series.samples[0] for series in record.find("pictures", curve="ornament-repeats")]
    assert len(done) == 3 and sorted(done) == done
    for series in record.find("slope"):
        assert series.figures["slope_low"] <= series.figures["slope"] <= series.figures["slope_high"]
    assert len(record.find("slope")) == 3


def test_points_of_a_curve_are_1_2_5_and_its_ends() -> None:
    assert Curve.parse("steps=1:50").points == (1, 2, 5, 10, 20, 50)
    assert Curve.parse("batch=3:8").points == (3, 5, 8)
    assert Curve.parse("ornament-repeats=1:1000").points[-1] == 1000
    for wrong in ("steps", "steps=5", "steps=9:3", "width=1:8", "steps=0:4", "steps=1:2"):
        with pytest.raises(InputError, match="curve"):
            Curve.parse(wrong)


class Failing:
    """ONNX Runtime that gives up after so many calls."""

    def __init__(self, bundle: Bundle, calls: int) -> None:
        self.inner, self.left, self.name = OnnxExecutor(bundle, threads=1), calls, "failing"
        self.manifest, self.identity = bundle.manifest, bundle.identity

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        self.left -= 1
        if self.left < 0:
            raise ParureError("the device fell off the bus")
        return self.inner.run(component, inputs, wanted)

    def close(self) -> None:
        self.inner.close()


def test_a_failure_in_mid_run_keeps_the_pictures_before_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    monkeypatch.setattr("parure_bench.peers.open_executor", lambda *_: Failing(bundle, 25))
    peer = executor_peer(bundle, "onnxruntime", None, drawn_shot(), ablation=False)
    out = tmp_path / "loop.json"
    with pytest.raises(ParureError, match="fell off"), recording(out, "loop", "c") as measured, progress() as bars:
        measure_loop([peer], [Setting(1, "ddim", 1.0)], Rounds(50, 0), measured, bars)
    record = load_record(out)
    assert record.incomplete == "the device fell off the bus"
    assert 1 <= len(record.find("picture")[0].samples) < 50


def test_one_backend_after_the_other_gives_the_same_series(tiny_bundle: Path) -> None:
    bundle, together, apart = Bundle.open(tiny_bundle), Run(), Run()
    peers = [executor_peer(bundle, name, None, drawn_shot(), ablation=True) for name in ("onnxruntime", "openvino")]
    with progress() as bars:
        for found, alone in ((together, False), (apart, True)):
            measure_loop(peers, [Setting(1, "ddim", 1.0)], Rounds(1, 0), found, bars, apart=alone)
    assert [series.key for series in together.series] == [series.key for series in apart.series]
    assert all("speedup" in series.figures for series in apart.series if series.name == "picture")


@pytest.mark.xdist_group("deep reuse")
def test_pytorch_behind_the_executors_call_shape_computes_what_the_graphs_do(
    deep_bundle: Path, tiny_checkpoint: Path
) -> None:
    bundle = Bundle.open(deep_bundle)
    eager = TorchExecutor(bundle, torch_components(open_checkpoint(tiny_checkpoint, bundle), bundle))
    graphs = OnnxExecutor(bundle, threads=1)
    generator = np.random.default_rng(0)
    for component in bundle.manifest.components:
        inputs = {t.name: generator.random((2, *t.shape), np.float32) for t in component.inputs}
        for name, array in graphs.run(component.name, inputs).items():
            assert np.abs(eager.run(component.name, inputs)[name] - array).max() <= 1e-4 * max(1, np.abs(array).max())


def test_peers_must_have_the_weights_of_the_bundle(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_checkpoint(tmp_path / "other", DEMO, seed=3)
    assert run("loop", tiny_bundle, "--checkpoint", tmp_path / "other", "--out", tmp_path / "loop.json") == 2
    assert "peers must have the same weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["components", "--batch", "1,x"], "1,x"),
        (["components", "--batch", "99"], "batch 99 is more than"),
        (["components", "--component", "wings"], "'wings' is not in the bundle; it has vae_encoder"),
        (["loop", "--backend", "torch"], "give it with --checkpoint"),
        (["loop", "--photo", "p.png"], "go together"),
        (["loop", "--curve", "steps=up"], "steps=1:50"),
        (["loop", "--steps", "1", "--solver", "magic"], "'magic' is not in this bundle"),
        (["loop", "--backend", "tensorrt", "--steps", "1"], "GPU"),
    ],
)
def test_wrong_input_exits_with_2_and_says_what_to_do(
    arguments: list[str], said: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    assert run(command, tiny_bundle, *options, "--out", tmp_path / "record.json") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "record.json").exists()
