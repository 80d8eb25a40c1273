"""Weights stay in memory as the checkpoint stores them, and are widened for as long as they are computed with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_float32(*modules: nn.Module) -> Iterator[None]:
    """Within the block the weights of `modules` are fp32. Of a large model in fp16 only one module at a time is wide."""
    weights = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    stored = [(t, t.data) for t in weights.values() if t.is_floating_point() and t.dtype != torch.float32]
    try:
        for tensor, data in stored:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in stored:
            tensor.data = data
