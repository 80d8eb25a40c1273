"""The model `manifest`: hands the bundle's manifest, and the small files that a client needs, to clients.

Copied as `1/model.py`. One request: the input `file` is the UTF-8 bytes of a name, the output `content` the file's. The
files that may be asked for stand in `1/files/`; the client verifies what it gets against the manifest's hashes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        root = Path(args["model_repository"]) / args["model_version"] / "files"
        files = (path for path in root.rglob("*") if path.is_file())
        self.files = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(pb_utils.get_input_tensor_by_name(request, "file").as_numpy()) for request in requests]

    def answer(self, name_bytes: Any) -> Any:
        """The content of the file that `name_bytes` uint8 [n] names; only names read at start-up are ever looked up."""
        name = name_bytes.tobytes().decode(errors="replace")
        if name not in self.files:
            message = f"file {name!r} is not handed out; there are {sorted(self.files)}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
        content = pb_utils.Tensor("content", np.frombuffer(self.files[name], np.uint8))
        return pb_utils.InferenceResponse([content])
