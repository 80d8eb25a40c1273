"""The python-backend model of a component, outside Triton: batches, splits, and answers bad requests one by one."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import parure_triton
from parure.onnx_executor import OnnxExecutor

SOURCE = Path(parure_triton.__file__).parent / "models" / "component.py"


@dataclass
class FakeTensor:
    name: str
    array: Any

    def as_numpy(self) -> Any:
        return self.array


class FakeError:
    INVALID_ARG, INTERNAL, CANCELLED = "INVALID_ARG", "INTERNAL", "CANCELLED"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class FakeResponse:
    tensors: list[FakeTensor] = field(default_factory=list)
    error: FakeError | None = None


@dataclass
class FakeRequest:
    arrays: dict[str, Any]
    cancelled: bool = False
    wanted: tuple[str, ...] = ("noise",)

    def is_cancelled(self) -> bool:
        return self.cancelled

    def requested_output_names(self) -> list[str]:
        return list(self.wanted)


@pytest.fixture
def component(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, over a stand-in for the module that only Triton's stub can import."""
    fake = types.ModuleType("triton_python_backend_utils")

    def get(request: FakeRequest, name: str) -> FakeTensor | None:
        return FakeTensor(name, request.arrays[name]) if name in request.arrays else None

    fake.__dict__.update(
        Tensor=FakeTensor,
        InferenceResponse=FakeResponse,
        TritonError=FakeError,
        TritonModelException=RuntimeError,
        get_input_tensor_by_name=get,
        triton_string_to_numpy={"TYPE_FP32": np.float32, "TYPE_FP16": np.float16}.__getitem__,
    )
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    spec = importlib.util.spec_from_file_location("parure_component_model", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(repository: Path) -> dict[str, str]:
    from google.protobuf import json_format, text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    parsed = text_format.Parse((repository / "unet" / "config.pbtxt").read_text(), ModelConfig())
    config = json_format.MessageToDict(parsed, preserving_proto_field_name=True)
    return {
        "model_config": json.dumps(config),
        "model_repository": str(repository / "unet"),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


@pytest.fixture
def model(component: Any, repository: Path) -> Any:
    loaded = component.TritonPythonModel()
    loaded.initialize(arguments(repository))
    return loaded


def inputs(batch: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "latents": generator.standard_normal((batch, 4, 8, 8)).astype(np.float32),
        "timestep": generator.uniform(0, 9, (batch, 1)).astype(np.float32),
    }


def noise(response: FakeResponse) -> Any:
    assert response.error is None, response.error.message
    return response.tensors[0].array


def test_requests_are_run_as_one_batch_and_each_gets_its_own_part(
    model: Any, in_process: OnnxExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [FakeRequest(inputs(batch, seed)) for seed, batch in enumerate((1, 2, 1))]
    session, batches = model.session, []

    class Counting:
        def run(self, names: list[str], feed: dict[str, Any]) -> Any:
            batches.append(len(feed["latents"]))
            return session.run(names, feed)

    monkeypatch.setattr(model, "session", Counting())
    responses = model.execute(requests)
    assert batches == [4]
    for request, response in zip(requests, responses, strict=True):
        arrays = request.arrays
        alone = in_process.run("unet", {"latents": arrays["latents"], "timestep": arrays["timestep"][:, 0]})["noise"]
        np.testing.assert_allclose(noise(response), alone, rtol=3e-4, atol=3e-6)


def test_bad_requests_get_errors_and_the_others_answers(model: Any) -> None:
    good = inputs(1, 0)
    bad = [
        {"latents": good["latents"]},
        good | {"latents": good["latents"].astype(np.float64)},
        good | {"latents": good["latents"][:, :3]},
        good | {"timestep": np.zeros((2, 1), np.float32)},
    ]
    responses = model.execute([FakeRequest(good), *(FakeRequest(arrays) for arrays in bad), FakeRequest(good)])
    assert np.array_equal(noise(responses[0]), noise(responses[-1]))
    assert [response.error.code for response in responses[1:-1]] == ["INVALID_ARG"] * 4
    assert "missing" in responses[1].error.message and "float64" in responses[2].error.message


def test_a_cancelled_request_is_not_run(model: Any) -> None:
    responses = model.execute([FakeRequest(inputs(1, 0), cancelled=True), FakeRequest(inputs(1, 0))])
    assert responses[0].error.code == "CANCELLED"
    assert noise(responses[1]).shape == (1, 4, 8, 8)


def test_a_request_that_breaks_the_batch_fails_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session

    class Breaking:
        def run(self, names: list[str], feed: dict[str, Any]) -> Any:
            if np.isnan(feed["timestep"]).any():
                raise ValueError("poison")
            return session.run(names, feed)

    monkeypatch.setattr(model, "session", Breaking())
    poison = inputs(1, 1) | {"timestep": np.full((1, 1), np.nan, np.float32)}
    responses = model.execute([FakeRequest(inputs(1, 0)), FakeRequest(poison), FakeRequest(inputs(1, 2))])
    assert "poison" in responses[1].error.message and responses[1].error.code == "INTERNAL"
    assert noise(responses[0]).shape == noise(responses[2]).shape


def test_numpy_2_is_refused_before_anything_is_loaded(
    component: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component.np, "__version__", "2.1.0")
    with pytest.raises(RuntimeError, match=r"numpy 2\.1\.0"):
        component.TritonPythonModel().initialize(arguments(repository))


def test_a_gpu_that_onnx_runtime_cannot_use_is_refused_with_the_remedy(
    component: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    on_gpu = arguments(repository) | {"model_instance_kind": "GPU", "model_instance_device_id": "1"}
    with pytest.raises(RuntimeError, match=r"asks for GPU 1.*CPUExecutionProvider only; install onnxruntime-gpu"):
        component.TritonPythonModel().initialize(on_gpu)


def test_an_instance_runs_on_the_gpu_that_it_was_given(
    component: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(component.ort, "get_available_providers", lambda: [component.CUDA, component.CPU])
    monkeypatch.setattr(component.ort, "InferenceSession", lambda *_, providers: opened.append(providers))
    component.open_session(Path("graph"), 1, 1)
    component.open_session(Path("graph"), 1, None)
    assert opened == [[(component.CUDA, {"device_id": 1}), component.CPU], [component.CUDA, component.CPU]]
