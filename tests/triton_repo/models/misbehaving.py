"""A python-backend model that answers wrongly, in the way that its input `timestep` names. Served by a real Triton."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

RIGHT, FEWER, EMPTY, MISSING, HALVED, MORE, NAN, INFINITE, REFUSED, SLOW, ASKED = range(11)
SLOW_SECONDS = 3.0


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.refused = 0

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """`latents` come back as `noise`, as they are or not; ASKED: how often this model has REFUSED."""
        latents = pb_utils.get_input_tensor_by_name(request, "latents").as_numpy()
        way = int(pb_utils.get_input_tensor_by_name(request, "timestep").as_numpy().flat[0])
        if way == REFUSED:
            self.refused += 1
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no", pb_utils.TritonError.INVALID_ARG))
        if way == MISSING:
            return pb_utils.InferenceResponse([])
        if way == SLOW:
            time.sleep(SLOW_SECONDS)
        last = np.zeros_like(latents)
        last[-1, -1, -1, -1] = {NAN: np.nan, INFINITE: np.inf}.get(way, 0)
        noise = {
            ASKED: np.full_like(latents, self.refused),
            FEWER: latents[:, :2],
            EMPTY: latents[:0],
            HALVED: latents.astype(np.float16),
            MORE: np.concatenate([latents, latents]),
        }.get(way, latents + last)
        return pb_utils.InferenceResponse([pb_utils.Tensor("noise", noise)])
