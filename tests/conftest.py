"""What tests share: one tiny checkpoint with random weights, really exported, and pictures to use it on."""

from __future__ import annotations

import os

# Workers run side by side: with more threads than cores each, small operators wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import numpy as np
import pytest

from parure.image import Pixels


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-golden", action="store_true", help="write the golden files anew instead of comparing")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's architecture at a quarter of its width, and crops of 64 px."""
    from dataclasses import replace

    from parure_export.checkpoint import new_checkpoint
    from parure_export.model.geometry import DEMO

    geometry = replace(
        DEMO,
        size=64,
        vae={**DEMO.vae, "block_out_channels": (8, 8, 16), "latent_channels": 4},
        unet={
            **DEMO.unet,
            "block_out_channels": (16, 16, 32),
            "cross_attention_dim": 16,
            "attention_head_dim": (1, 1, 2),
        },
        clip={**DEMO.clip, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "projection_dim": 16},
        mask_head_hidden=8,
        pipeline={**DEMO.pipeline, "crop_size": 64, "default_steps": 4},
    )
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    new_checkpoint(folder, geometry)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's bundle, as `parure export` makes it."""
    from parure_export.export import export_bundle

    out = tmp_path_factory.mktemp("tiny") / "bundle"
    export_bundle(tiny_checkpoint, out, max_batch=8)
    return out


@pytest.fixture(scope="session")
def deep_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's bundle for fast modes: `parure export --deep-reuse`."""
    from parure_export.export import export_bundle

    out = tmp_path_factory.mktemp("deep") / "bundle"
    export_bundle(tiny_checkpoint, out, max_batch=8, solvers=["ddim", "pndm"], deep_reuse=True)
    return out


@pytest.fixture(scope="session")
def photo() -> Pixels:
    """A smooth picture with some texture, [96, 128, 3]."""
    rows, columns = np.mgrid[0:96, 0:128]
    texture = np.random.default_rng(0).integers(0, 12, (96, 128))
    return np.stack([rows * 2, columns * 2 - columns // 4, 120 + texture], axis=2).astype(np.uint8)


@pytest.fixture(scope="session")
def ornament() -> Pixels:
    """A ring on white, [80, 80, 3]."""
    rows, columns = np.mgrid[0:80, 0:80] - 39.5
    ring = np.abs(np.hypot(rows, columns) - 28) < 6
    return np.where(ring[..., None], np.array([200, 30, 60]), 250).astype(np.uint8)
