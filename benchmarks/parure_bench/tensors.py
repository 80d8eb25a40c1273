"""Inputs for a component alone: random, in the ranges that the loop has."""

from __future__ import annotations

import numpy as np

from parure.executor import Array
from parure.manifest import Component, TensorSpec


def random_inputs(component: Component, batch: int) -> dict[str, Array]:
    """Every input of `component`, [batch, ...], from a fixed seed."""
    generator = np.random.Generator(np.random.Philox(batch))
    return {tensor.name: _draw(tensor, batch, generator) for tensor in component.inputs}


def boundary_bytes(component: Component) -> int:
    """Bytes of all inputs and outputs of one sample."""
    return sum(t.nbytes for t in (*component.inputs, *component.outputs))


def _draw(tensor: TensorSpec, batch: int, generator: np.random.Generator) -> Array:
    shape, dtype = (batch, *tensor.shape), tensor.dtype
    if tensor.name == "timestep":
        return np.full(shape, 500, dtype)
    if tensor.name == "mask":
        return generator.random(shape, np.float32).astype(dtype)
    return generator.standard_normal(shape, np.float32).astype(dtype)
