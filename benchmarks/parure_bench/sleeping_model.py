"""A python-backend model that sleeps instead of computing, and answers with zeros.

Run by Triton in place of every component, for `parure_bench.batch_scaling`: `1/seconds.json` says how long a batch takes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self.seconds = float(json.loads((folder / "seconds.json").read_text()))
        self.outputs = json.loads(args["model_config"])["output"]

    def execute(self, requests: list[Any]) -> list[Any]:
        time.sleep(self.seconds)
        return [self.answer(len(request.inputs()[0].as_numpy())) for request in requests]

    def answer(self, batch: int) -> Any:
        tensors = []
        for output in self.outputs:
            shape = (batch, *(int(side) for side in output["dims"]))
            kind = pb_utils.triton_string_to_numpy(output["data_type"])
            tensors.append(pb_utils.Tensor(output["name"], np.zeros(shape, kind)))
        return pb_utils.InferenceResponse(tensors)
