"""OpenVINO in this process: what ONNX Runtime computes, and bf16 only where it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import parure
from parure.bundle import Bundle
from parure.errors import InputError
from parure.image import Pixels
from parure.manifest import Precision
from parure.onnx_executor import OnnxExecutor
from parure.openvino_executor import OpenVinoExecutor

pytest.importorskip("openvino", reason="OpenVINO is not installed")
BOX = (30.0, 40.0, 70.0, 75.0)
COMPONENTS = ("vae_encoder", "image_encoder", "reference_net", "mask_head", "unet", "vae_decoder")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def executors(bundle: Bundle) -> Iterator[tuple[OnnxExecutor, OpenVinoExecutor]]:
    both = OnnxExecutor(bundle, threads=1), OpenVinoExecutor(bundle, threads=1)
    yield both
    for executor in both:
        executor.close()


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_component_computes_what_onnx_runtime_does(
    component: str, batch: int, bundle: Bundle, executors: tuple[OnnxExecutor, OpenVinoExecutor]
) -> None:
    generator = np.random.default_rng(batch)
    inputs = {
        tensor.name: generator.random((batch, *tensor.shape), np.float32)
        for tensor in bundle.manifest.component(component).inputs
    }
    expected, found = (executor.run(component, inputs) for executor in executors)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.abs(found[name] - array).max() <= 1e-4 * max(1.0, float(np.abs(array).max()))


def test_outputs_stay_as_they_are_when_the_component_runs_again(
    bundle: Bundle, executors: tuple[OnnxExecutor, OpenVinoExecutor]
) -> None:
    spec = bundle.manifest.component("vae_decoder").inputs[0]
    first = executors[1].run("vae_decoder", {spec.name: np.zeros((1, *spec.shape), np.float32)})["image"]
    kept = first.copy()
    executors[1].run("vae_decoder", {spec.name: np.ones((1, *spec.shape), np.float32)})
    assert np.array_equal(first, kept)


def test_the_whole_loop_gives_the_same_picture_and_bf16_one_that_is_close(
    tiny_bundle: Path, photo: Pixels, ornament: Pixels
) -> None:
    crops = {}
    for backend in ("onnxruntime", "openvino", "openvino-bf16"):
        with parure.open(tiny_bundle, threads=1, backend=backend) as tryon:  # type: ignore[arg-type]
            assert tryon.loop.name == backend
            crops[backend] = tryon(photo, ornament, BOX, steps=2).crop
    assert np.abs(crops["openvino"] - crops["onnxruntime"]).max() <= 1e-3
    assert np.abs(crops["openvino-bf16"] - crops["onnxruntime"]).mean() <= 0.05


def test_without_openvino_the_install_line_is_given(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"pip install 'parure\[openvino\]'"):
        OpenVinoExecutor(bundle)


def test_a_bf16_bundle_is_refused_with_what_to_do(bundle: Bundle) -> None:
    halved = Bundle(bundle.root, bundle.manifest.model_copy(update={"precision": Precision.BF16}), bundle.identity)
    with pytest.raises(InputError, match="give it an fp32 bundle"):
        OpenVinoExecutor(halved)
