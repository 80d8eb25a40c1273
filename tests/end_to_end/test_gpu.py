"""Engines run: what they compute, against the graphs that they were built from. All of it needs a GPU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import parure
from parure.bundle import Bundle, sha256_of
from parure.executor import Arrays
from parure.host import gpus
from parure.manifest import MANIFEST_NAME
from parure.onnx_executor import OnnxExecutor
from parure.tensorrt_executor import TensorRtExecutor
from parure_export.engines.build import Built, build_engines
from parure_export.engines.cache import EngineCache
from parure_export.engines.request import Options, Profile
from parure_export.engines.targets import Flavor, resolve

pytestmark = pytest.mark.skipif(not gpus(), reason="running an engine needs a GPU, and this machine has none")

RTX = Flavor.TENSORRT_RTX
TOLERANCE = 1e-2  # TensorFloat-32 may be used for fp32
STATIC, RANGE = Profile(min=1, opt=1, max=1), Profile(min=1, opt=2, max=4)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def oracle(bundle: Bundle) -> Iterator[OnnxExecutor]:
    executor = OnnxExecutor(bundle, threads=1)
    yield executor
    executor.close()


def build(bundle: Bundle, *, target: str = "local", profile: Profile = STATIC, **options: bool) -> list[Built]:
    cache = EngineCache(bundle.root.parent / "cache")
    return list(build_engines(bundle, resolve(target, RTX), RTX, [profile], options=Options(**options), cache=cache))


def draw(bundle: Bundle, component: str, batch: int, seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    specs = bundle.manifest.component(component).inputs
    return {t.name: generator.random((batch, *t.shape)).astype(t.dtype) for t in specs}


def check_against(oracle: OnnxExecutor, bundle: Bundle, batch: int) -> None:
    """Every component, several calls: the first is not yet a CUDA graph, the later ones are."""
    with_engines = TensorRtExecutor(bundle)
    for component in bundle.manifest.components:
        for seed in range(3):
            inputs = draw(bundle, component.name, batch, seed)
            ours, theirs = (executor.run(component.name, inputs) for executor in (with_engines, oracle))
            for name, expected in theirs.items():
                assert np.abs(ours[name] - expected).max() <= TOLERANCE * np.abs(expected).max(), (component.name, seed)
    with_engines.close()


def test_static_engines_compute_what_the_graphs_compute(bundle: Bundle, oracle: OnnxExecutor) -> None:
    built = build(bundle)
    assert all(b.record.inspected for b in built)
    check_against(oracle, bundle, 1)


def test_ranged_engines_compute_what_the_graphs_compute(bundle: Bundle, oracle: OnnxExecutor) -> None:
    build(bundle, profile=RANGE)
    for batch in (1, 3, 4):
        check_against(oracle, bundle, batch)


def test_a_portable_engine_runs_here(bundle: Bundle, oracle: OnnxExecutor) -> None:
    build(bundle, target="portable")
    check_against(oracle, bundle, 1)


def test_the_loop_on_engines_is_the_loop_on_graphs(bundle: Bundle) -> None:
    build(bundle)
    photo = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    with parure.open(bundle.root, backend="tensorrt") as engines, parure.open(bundle.root) as graphs:
        a, b = (t(photo, photo, (30, 40, 70, 75), steps=3).latents for t in (engines, graphs))
    assert np.abs(a - b).max() <= TOLERANCE * np.abs(b).max()


@pytest.mark.parametrize("options", [{"refittable": True}, {"strip": True}, {"weight_streaming": True}])
def test_weights_outside_the_plan_find_their_way_in(
    options: dict[str, bool], bundle: Bundle, oracle: OnnxExecutor
) -> None:
    build(bundle, **options)
    check_against(oracle, bundle, 1)


def test_a_fine_tune_reaches_an_engine_by_refit(bundle: Bundle) -> None:
    before = {b.record.component: b.record for b in build(bundle, refittable=True)}
    fine_tune(bundle.root, "mask_head")
    tuned = Bundle.open(bundle.root)
    after = {b.record.component: b.record for b in build(tuned, refittable=True)}
    assert after["mask_head"].refitted_from == before["mask_head"].key
    assert after["unet"] == before["unet"]
    executor = OnnxExecutor(tuned, threads=1)
    check_against(executor, tuned, 1)
    executor.close()


def fine_tune(root: Path, component: str) -> None:
    """Change every weight matrix a little, and make the manifest vouch for it."""
    name = f"onnx/{component}.onnx"
    model = onnx.load(root / name)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, root / name)
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["files"][name] = sha256_of(root / name)
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))
