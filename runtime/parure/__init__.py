"""parure: the light runtime that drives the denoise-and-mask loop. Imports neither torch nor onnx nor tensorrt."""

import logging

from parure.errors import ParureError
from parure.geometry import Box
from parure.modes import Mode
from parure.tryon import Progress, Result, TryOn
from parure.tryon import open_tryon as open

logging.getLogger("stamina").addHandler(logging.NullHandler())  # repeated calls are for who listens, not for stderr

__all__ = ["Box", "Mode", "ParureError", "Progress", "Result", "TryOn", "open"]
