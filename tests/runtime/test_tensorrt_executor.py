"""Which engine runs a batch, and what is said where none can. Running one needs a GPU."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from parure.bundle import Bundle, sha256_of
from parure.engine import PLAN_SUFFIX, BatchRange, EngineRecord, graph_hash
from parure.errors import BundleError, InputError
from parure.executor import Array, Arrays
from parure.host import Gpu, installed
from parure.tensorrt_executor import TensorRtExecutor, route

A100 = Gpu("A100", (8, 0), "580.12", 80 * 2**30)
VERSION = installed("tensorrt-rtx-cu12") or "0"


def record(bundle: Bundle, component: str, low: int, opt: int, high: int, plan: Path) -> EngineRecord:
    spec = bundle.manifest.component(component)
    return EngineRecord(
        component=component, target="a100", compute_capability=(8, 0), flavor="tensorrt-rtx", flavor_version=VERSION,
        precision=bundle.manifest.precision, batches=BatchRange(min=low, opt=opt, max=high), inputs=spec.inputs,
        outputs=spec.outputs, refittable=False, stripped=False, weight_streaming=False, family="0" * 64, graph_sha256=graph_hash(bundle, component),
        plan_sha256=sha256_of(plan), plan_bytes=plan.stat().st_size, key="0" * 64, layers={}, types={},
        build_seconds=1, peak_bytes=1,
    )  # fmt: skip


def place(bundle: Bundle, component: str, *batches: tuple[int, int, int]) -> list[Path]:
    """Plans that no TensorRT has to open: their records are what is looked at."""
    folder = bundle.root / "engines" / "a100-tensorrt-rtx"
    folder.mkdir(parents=True, exist_ok=True)
    placed = []
    for low, opt, high in batches:
        plan = folder / f"{component}-b{low}-{opt}-{high}{PLAN_SUFFIX}"
        plan.write_bytes(component.encode())
        plan.with_suffix(".json").write_text(record(bundle, component, low, opt, high, plan).model_dump_json())
        placed.append(plan)
    return placed


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    opened = Bundle.open(tmp_path / "bundle")
    for component in opened.manifest.components:
        place(opened, component.name, (1, 1, 1))
    return opened


class Recorder:
    """Stands where TensorRT would: answers with zeros of the right shape, and remembers."""

    opened: list[Path]

    def __init__(self, plan: Path, record: EngineRecord, graph: Path) -> None:
        self.record = record
        Recorder.opened.append(plan)

    def infer(self, inputs: Arrays) -> Mapping[str, Array]:
        batch = len(next(iter(inputs.values())))
        return {t.name: np.zeros((batch, *t.shape), t.dtype) for t in self.record.outputs}

    def close(self) -> None:
        Recorder.opened.append(Path("closed"))


@pytest.mark.parametrize(
    ("batch", "chosen"),
    [(1, (1, 1, 1)), (2, (1, 4, 8)), (4, (4, 4, 4)), (6, (1, 4, 8)), (7, (1, 8, 8)), (8, (1, 8, 8))],
)
def test_the_engine_whose_range_fits_and_whose_optimum_is_nearest_runs(
    batch: int, chosen: tuple[int, int, int], bundle: Bundle
) -> None:
    batches = [(1, 1, 1), (4, 4, 4), (1, 4, 8), (1, 8, 8)]
    placed = dict(zip(place(bundle, "unet", *batches), batches, strict=True))
    engines = {plan: record(bundle, "unet", *span, plan) for plan, span in placed.items()}
    assert placed[route("unet", engines, batch)] == chosen


def test_a_batch_that_no_engine_takes_names_those_there_are(bundle: Bundle) -> None:
    (plan,) = place(bundle, "unet", (1, 2, 4))
    with pytest.raises(InputError, match=r"no engine takes a batch of 9; there are engines for 1\.\.4; .*--batch 9"):
        route("unet", {plan: record(bundle, "unet", 1, 2, 4, plan)}, 9)


def test_engines_are_opened_once_when_they_are_needed_and_closed(bundle: Bundle) -> None:
    Recorder.opened = []
    executor = TensorRtExecutor(bundle, open_plan=Recorder, gpu=A100)
    assert Recorder.opened == []
    spec = bundle.manifest.component("vae_encoder")
    image = {t.name: np.zeros((1, *t.shape), t.dtype) for t in spec.inputs}
    for _ in range(2):
        assert executor.run("vae_encoder", image)["latents"].shape == (1, *spec.outputs[0].shape)
    assert [path.name for path in Recorder.opened] == ["vae_encoder-b1-1-1.plan"]
    executor.close()
    assert Recorder.opened[-1] == Path("closed")


def test_a_plan_that_was_altered_is_not_opened(bundle: Bundle) -> None:
    Recorder.opened = []
    executor = TensorRtExecutor(bundle, open_plan=Recorder, gpu=A100)
    next(bundle.root.glob("engines/*/mask_head*.plan")).write_bytes(b"other")
    spec = bundle.manifest.component("mask_head")
    with pytest.raises(BundleError, match="altered or truncated"):
        executor.run("mask_head", {t.name: np.zeros((1, *t.shape), t.dtype) for t in spec.inputs})
    assert Recorder.opened == []


def test_a_component_without_an_engine_is_named_with_the_reason(bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"no engine of \w+ for L4; .* was built for sm80, L4 is sm89"):
        TensorRtExecutor(bundle, gpu=Gpu("L4", (8, 9), "580.12", 2**34))


def test_a_machine_without_a_gpu_is_told_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parure.tensorrt_executor.gpus", list)
    with pytest.raises(InputError, match="needs a GPU, and this machine has none"):
        TensorRtExecutor(bundle)
