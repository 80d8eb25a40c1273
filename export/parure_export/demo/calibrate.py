"""Sharpens the trained mask head: squared error teaches it to blur an edge that it is unsure of."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray
from torch import nn

from parure.geometry import downsample_mask
from parure_export.checkpoint import Checkpoint, PipelineConfig, scheduler_of
from parure_export.demo.dataset import HELD_OUT_SEED
from parure_export.demo.evaluate import soft_iou
from parure_export.demo.render import render_triplet
from parure_export.model.geometry import ModelGeometry, RawModules
from parure_export.reference_loop import reference_loop
from parure_export.samples import SampleShape, sample_inputs
from parure_export.solvers import build_scheduler

FIRST_SEED = HELD_OUT_SEED + 20_000_000  # neither training nor evaluation sees these triplets
TRIPLETS = 48
SCALES = np.arange(1.0, 2.51, 0.1)
BIASES = np.arange(-0.4, 1.21, 0.1)


def calibrate_mask_head(modules: RawModules, geometry: ModelGeometry) -> tuple[float, float]:
    """Give the logits of the final mask the scale and bias of best soft IoU; returns the two.

    They are found on triplets of their own, after whole loops in PyTorch, and become part of the last layer.
    """
    logits, truth = _final_logits(modules, geometry)
    scored = [
        (float(np.mean([soft_iou(_sigmoid(s * z + b), t) for z, t in zip(logits, truth, strict=True)])), s, b)
        for s in SCALES
        for b in BIASES
    ]
    _, scale, bias = max(scored)
    last = cast(nn.Conv2d, modules.mask_head.mlp[-1])
    assert last.bias is not None
    with torch.no_grad():
        last.weight.mul_(float(scale))
        last.bias.mul_(float(scale)).add_(float(bias))
    return float(scale), float(bias)


def _final_logits(
    modules: RawModules, geometry: ModelGeometry
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    pipeline = PipelineConfig.model_validate(geometry.pipeline)
    components = Checkpoint(modules, pipeline, scheduler_of(geometry), sha256="").components()
    shape = SampleShape(
        geometry.size,
        geometry.latent_size,
        geometry.vae["latent_channels"],
        geometry.clip["image_size"],
        pipeline.pixel_mean,
        pipeline.pixel_std,
    )
    inputs = sample_inputs(shape, TRIPLETS, FIRST_SEED)
    scheduler = build_scheduler("ddim", dict(DDPMScheduler(**scheduler_of(geometry)).config))
    *_, last = reference_loop(components, inputs, scheduler, pipeline.default_steps)
    masks = last.predicted_mask[:, 0].clamp(1e-6, 1 - 1e-6)
    triplets = (render_triplet(FIRST_SEED + i, size=geometry.size) for i in range(TRIPLETS))
    return torch.logit(masks).numpy(), [downsample_mask(t.wearing_mask, geometry.latent_size) for t in triplets]


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return (1 / (1 + np.exp(-logits))).astype(np.float32)
