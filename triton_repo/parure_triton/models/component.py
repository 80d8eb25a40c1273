"""A component behind Triton's python backend: its ONNX graph on ONNX Runtime. Copied as `1/model.py`.

It stands alone: the server's Python needs numpy < 2 and onnxruntime, not parure. The model's parameters name the
graph, the sha256 of each of its files, and the number of threads (0: all cores that the process may use).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

Arrays = dict[str, Any]
HASH_PREFIX = "sha256:"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Refused(Exception):
    """A request that cannot be run; `code` is a `TritonError` code."""

    def __init__(self, message: str, code: Any = None) -> None:
        super().__init__(message)
        self.code = pb_utils.TritonError.INVALID_ARG if code is None else code


class TritonPythonModel:
    """Runs the requests of one `execute` call as one batch, and answers each of them."""

    def initialize(self, args: dict[str, str]) -> None:
        """Verify the graph's files, then load them; an error makes Triton refuse the model and log why."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise pb_utils.TritonModelException(
                f"numpy {np.__version__} makes Triton's python backend return empty outputs; install 'numpy<2'"
            )
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        verify_files(folder, parameters)
        self.inputs = {spec["name"]: spec for spec in config["input"]}
        self.outputs = [spec["name"] for spec in config["output"]]
        gpu = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self.session = open_session(folder / parameters["graph"], int(parameters["threads"]), gpu)
        self.ranks = {tensor.name: len(tensor.shape) for tensor in self.session.get_inputs()}
        if set(self.ranks) != set(self.inputs):
            raise pb_utils.TritonModelException(
                f"graph {parameters['graph']} has inputs {sorted(self.ranks)}, the configuration {sorted(self.inputs)}"
            )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request; a bad request gets an error and the others are answered."""
        responses: list[Any] = [None] * len(requests)
        accepted: list[tuple[int, Arrays]] = []
        wanted: set[str] = set()
        for index, request in enumerate(requests):
            try:
                accepted.append((index, self.read(request)))
                wanted.update(request.requested_output_names())
            except Refused as error:
                responses[index] = error_response(str(error), error.code)
        answers = self.answer([inputs for _, inputs in accepted], wanted) if accepted else []
        for (index, _), answer in zip(accepted, answers, strict=True):
            responses[index] = answer
        return responses

    def read(self, request: Any) -> Arrays:
        """The inputs of one request, [B, ...] each, checked against the configuration; raises `Refused`."""
        if request.is_cancelled():
            raise Refused("the caller gave up", pb_utils.TritonError.CANCELLED)
        inputs: Arrays = {}
        for name, spec in self.inputs.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise Refused(f"input {name!r} is missing")
            array = tensor.as_numpy()
            expected = pb_utils.triton_string_to_numpy(spec["data_type"])
            dims = tuple(int(side) for side in spec["dims"])
            if array.dtype != expected or array.shape[1:] != dims:
                raise Refused(
                    f"input {name!r} is {array.dtype} {list(array.shape)}; "
                    f"expected {np.dtype(expected)} [B, {', '.join(map(str, dims))}]"
                )
            inputs[name] = array.reshape(-1) if self.ranks[name] == 1 else array  # a scalar travels as [B, 1]
        if len({len(array) for array in inputs.values()}) > 1:
            raise Refused(f"batch sizes differ: { {name: len(array) for name, array in inputs.items()} }")
        return inputs

    def answer(self, requests: list[Arrays], wanted: Collection[str]) -> list[Any]:
        """Responses to `requests`, run as one batch; where that fails, alone, so that one cannot fail the others."""
        try:
            results = self.run(requests, [name for name in self.outputs if name in wanted] or self.outputs)
        except Exception as error:
            if len(requests) > 1:
                return [response for request in requests for response in self.answer([request], wanted)]
            return [error_response(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in result.items()])
            for result in results
        ]

    def run(self, requests: list[Arrays], wanted: list[str]) -> list[Arrays]:
        """Concatenate along the batch, run, split again; the outputs that a request of the batch wants."""
        sizes = [len(next(iter(request.values()))) for request in requests]
        if len(requests) == 1:
            feed = requests[0]
        else:
            feed = {name: np.concatenate([request[name] for request in requests]) for name in self.inputs}
        outputs = dict(zip(wanted, self.session.run(wanted, feed), strict=True))
        for name, array in outputs.items():
            if array.shape[:1] != (sum(sizes),):
                raise ValueError(f"output {name!r} has shape {list(array.shape)}; expected a batch of {sum(sizes)}")
        ends = np.cumsum(sizes).tolist()
        return [
            {name: scalars_as_columns(array[end - size : end]) for name, array in outputs.items()}
            for size, end in zip(sizes, ends, strict=True)
        ]


def scalars_as_columns(array: Any) -> Any:
    """[B] -> [B, 1]: Triton has no tensors without dimensions."""
    return array.reshape(-1, 1) if array.ndim == 1 else array


def error_response(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def verify_files(folder: Path, parameters: dict[str, str]) -> None:
    """Every file that the parameters name must have the content that they name."""
    for key, expected in parameters.items():
        if not key.startswith(HASH_PREFIX):
            continue
        path = folder / key.removeprefix(HASH_PREFIX)
        if path.is_symlink() or not path.is_file():
            raise pb_utils.TritonModelException(f"{path} is missing or a symbolic link; write the repository again")
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
        if actual != expected:
            raise pb_utils.TritonModelException(
                f"{path} has sha256 {actual[:12]}..., the bundle says {expected[:12]}...; "
                "it was altered or truncated; write the repository again"
            )


def open_session(graph: Path, threads: int, gpu: int | None) -> Any:
    """As `parure.onnx_executor.open_session`: the same options, so that both compute the same bits.

    `gpu` is the one that the configuration gives this instance. None: whatever the host has.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the other components' cores are these
    available = ort.get_available_providers()
    if gpu is not None and CUDA not in available:
        raise pb_utils.TritonModelException(
            f"the configuration asks for GPU {gpu}, and this onnxruntime runs on {', '.join(available)} only; install "
            "onnxruntime-gpu on the server, or write the repository without --gpus"
        )
    providers: list[Any] = [provider for provider in (CUDA, CPU) if provider in available]
    if gpu is not None:
        providers[0] = (CUDA, {"device_id": gpu})
    return ort.InferenceSession(str(graph), options, providers=providers)
