"""A python-backend model that takes its time: a request whose timestep is not 0 waits for `SECONDS`.

Run by Triton in place of the demo's U-Net, for `parure_bench.deadlines`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

SECONDS = 0.75


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        if pb_utils.get_input_tensor_by_name(request, "timestep").as_numpy().any() and not request.is_cancelled():
            time.sleep(SECONDS)
        latents = pb_utils.get_input_tensor_by_name(request, "latents").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("noise", np.zeros_like(latents))])
