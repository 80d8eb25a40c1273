"""A python-backend model that hands its input back. Run by Triton, for `parure_bench.tensor_trips`."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        arrays = [pb_utils.get_input_tensor_by_name(request, "given").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("returned", array)]) for array in arrays]
