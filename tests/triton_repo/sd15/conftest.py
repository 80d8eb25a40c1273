"""A bundle of SD 1.5 size without its weights: real tensors and feature layout, graphs and plans of a few bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from parure.bundle import Bundle, sha256_of
from parure.engine import BatchRange, EngineRecord, engine_folder, graph_hash
from parure.manifest import (
    MANIFEST_NAME,
    Component,
    FeatureLayout,
    Geometry,
    ImageEncoderSpec,
    LoopSpec,
    Manifest,
    Parity,
    Precision,
    TensorSpec,
)
from parure.modes import SHALLOW_UNET
from parure.solver import SolverSpec

MAX_BATCH = 8
BATCHES = (BatchRange(min=1, opt=1, max=1), BatchRange(min=1, opt=4, max=8))


@pytest.fixture(scope="session")
def layout() -> FeatureLayout:
    """Of SD 1.5's U-Net, built without weights."""
    import torch
    from diffusers import UNet2DConditionModel

    from parure_export.model.attention import SELF_ATTENTION
    from parure_export.model.features import feature_layout
    from parure_export.model.geometry import SD15

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=SD15.latent_size, **SD15.unet)
    layers = [n.removesuffix(".processor") for n in unet.attn_processors if n.endswith(SELF_ATTENTION)]
    return feature_layout(unet, layers, SD15.mask_head_layers)


def _components(layout: FeatureLayout) -> tuple[Component, ...]:
    """As an fp16 export names and shapes them: everything in 16 bits but the timestep."""
    from parure_export.model.geometry import SD15
    from parure_export.onnx_export import INPUTS, OUTPUTS

    side, pixels = SD15.latent_size, SD15.clip["image_size"]
    latents, mask = (SD15.vae["latent_channels"], side, side), (1, side, side)
    shapes = {
        "image": (3, SD15.size, SD15.size),
        "pixels": (3, pixels, pixels),
        "latents": latents, "masked_latents": latents, "noise": latents,
        "mask": mask, "predicted_mask": mask,
        "tokens": ((pixels // SD15.clip["patch_size"]) ** 2 + 1, SD15.clip["projection_dim"]),
        "features": (layout.length,), "ornament_features": (layout.length,), "model_features": (layout.length,),
        "timestep": (),
    }  # fmt: skip

    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32" if name == "timestep" else "float16", shape=shapes[name])

    return tuple(
        Component(
            name=name,
            graph=f"onnx/{name}.onnx",
            inputs=tuple(spec(tensor) for tensor in INPUTS[name]),
            outputs=(spec(OUTPUTS[name]),),
            parameters=1,
            flops=1,
        )
        for name in INPUTS
        if name != SHALLOW_UNET
    )


def _write_manifest(root: Path, layout: FeatureLayout) -> None:
    solver = SolverSpec(
        name="ddim", rule="ddim", prediction_type="epsilon", grid="solvers/ddim.npz", max_steps=1000, options={"eta": 0.0}
    )  # fmt: skip
    components = _components(layout)
    for name in (solver.grid, *(component.graph for component in components), "onnx/unet.onnx.data"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"stands for {name}")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    manifest = Manifest(
        pipeline="ornament_tryon",
        precision=Precision.FP16,
        max_batch=MAX_BATCH,
        components=components,
        features=layout,
        geometry=Geometry(
            size=512, latent_size=64, latent_channels=4, compose="box", preview=((0.0, 0.0, 0.0),) * 5, feather=0.02
        ),
        image_encoder=ImageEncoderSpec(size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        loop=LoopSpec(default_steps=30, default_solver="ddim", guidance="none", ornament_features_cacheable=True),
        solvers=(solver,),
        parity=Parity(components=()),
        checkpoint_sha256="0" * 64,
        tools={},
        files={name: sha256_of(root / name) for name in names},
    )
    (root / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2))


def write_plan(
    bundle: Bundle, component: Component, target: str, capability: tuple[int, int], batches: BatchRange,
    flavor: str = "tensorrt", stripped: bool = False,
) -> None:  # fmt: skip
    """A plan of a few bytes with the record that `parure build` would put beside it."""
    folder = engine_folder(bundle.root, target, flavor)
    folder.mkdir(parents=True, exist_ok=True)
    span = f"{batches.max}" if batches.static else f"{batches.min}-{batches.opt}-{batches.max}"
    plan = folder / f"{component.name}-b{span}.plan"
    plan.write_text(f"stands for {plan.name} of {target}")
    record = EngineRecord(
        component=component.name, target=target, compute_capability=capability, flavor=flavor,
        flavor_version="10.13.3.9", precision=bundle.manifest.precision, batches=batches,
        inputs=component.inputs, outputs=component.outputs, refittable=stripped, stripped=stripped,
        weight_streaming=False, family="0" * 64, graph_sha256=graph_hash(bundle, component.name), plan_sha256=sha256_of(plan), plan_bytes=plan.stat().st_size,
        key="0" * 64, layers={}, types={}, build_seconds=1.0, peak_bytes=1,
    )  # fmt: skip
    plan.with_suffix(".json").write_text(record.model_dump_json())


@pytest.fixture(scope="session")
def sd15_bundle(layout: FeatureLayout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With plans for an A100 and an H100: a static one, and one for every batch from 1 to 8."""
    root = tmp_path_factory.mktemp("sd15") / "bundle"
    root.mkdir()
    _write_manifest(root, layout)
    bundle = Bundle.open(root)
    for target, capability in (("a100", (8, 0)), ("h100", (9, 0))):
        for component in bundle.manifest.components:
            for batches in BATCHES:
                write_plan(bundle, component, target, capability, batches)
    return root
