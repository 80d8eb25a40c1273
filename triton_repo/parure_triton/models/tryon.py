"""The models `tryon` and `tryon_unary`. Copied as `1/model.py`; the server's Python needs the package parure.

What it is stands in `parure_triton.loop_model`, because it runs the loop of the runtime and not a copy of it.
"""

from __future__ import annotations

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

try:
    from parure_triton.loop_model.model import TritonPythonModel
except ImportError as error:
    raise pb_utils.TritonModelException(
        f"the server loop needs {error.name}, which the server's Python lacks; run `pip install 'parure[serve]'` there"
    ) from error

__all__ = ["TritonPythonModel"]
