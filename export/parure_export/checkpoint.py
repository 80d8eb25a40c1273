"""Reads and writes checkpoint folders: diffusers-style, safetensors only, every problem named precisely."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from pydantic import ValidationError
from safetensors import safe_open
from transformers import CLIPVisionModelWithProjection

from parure.errors import CheckpointError
from parure.manifest import Frozen, first_fault
from parure_export.model import (
    Components,
    ImageEncoder,
    MaskHead,
    ReferenceNet,
    ShallowUNet,
    TryOnUNet,
    VaeDecoder,
    VaeEncoder,
)
from parure_export.model.features import Form
from parure_export.model.geometry import ModelGeometry, RawModules, new_modules
from parure_export.model.mask_head import MaskHeadComponent
from parure_export.staging import staged

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
FOLDERS = {
    "unet": UNet2DConditionModel,
    "reference_net": UNet2DConditionModel,
    "mask_head": MaskHead,
    "vae": AutoencoderKL,
    "image_encoder": CLIPVisionModelWithProjection,
}
INDEX = "model_index.json"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_DTYPE_ARGUMENT = {"diffusers": "torch_dtype", "transformers": "dtype", "parure_export": "torch_dtype"}


class PipelineConfig(Frozen):
    """What `model_index.json` says about the loop, beyond the folders: it belongs to the checkpoint."""

    crop_size: int
    crop_enlarge: float = 1.5
    compose: Literal["mask", "box"] = "box"
    feather: float = 0.02
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    guidance: Literal["none", "zero_condition"] = "none"
    default_guidance: float = 1.0
    default_steps: int = 30
    default_solver: str = "ddim"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, every module in evaluation mode and of the type that it is stored in."""

    modules: RawModules
    pipeline: PipelineConfig
    scheduler_config: dict[str, Any]
    sha256: str

    def components(self, form: Form = "raw", deep_reuse: bool = False) -> Components:
        """The wrapped modules, which give and take features in `form`; `deep_reuse` adds the shallow U-Net."""
        layers = self.modules.mask_head.config.layers
        unet = TryOnUNet(self.modules.unet, layers, form, give_deep=deep_reuse)
        denoiser = self.modules.unet if form == "projected" else None
        reference_net = ReferenceNet(self.modules.reference_net, layers, denoiser)
        return Components(
            vae_encoder=VaeEncoder(self.modules.vae).eval(),
            image_encoder=ImageEncoder(self.modules.image_encoder).eval(),
            reference_net=reference_net.eval(),
            mask_head=MaskHeadComponent(self.modules.mask_head, reference_net.layout).eval(),
            unet=unet.eval(),
            vae_decoder=VaeDecoder(self.modules.vae).eval(),
            layout=reference_net.layout,
            unet_shallow=ShallowUNet(unet).eval() if deep_reuse else None,
        )


def save_checkpoint(folder: Path, modules: RawModules, pipeline: PipelineConfig, scheduler: dict[str, Any]) -> None:
    """Write a checkpoint folder; existing files of the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    for name in FOLDERS:
        getattr(modules, name).save_pretrained(folder / name, safe_serialization=True)
    DDPMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "ParureOrnamentTryOn",
        **{name: [cls.__module__.split(".")[0], cls.__name__] for name, cls in FOLDERS.items()},
        "scheduler": ["diffusers", "DDPMScheduler"],
        "parure": pipeline.model_dump(mode="json"),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def new_checkpoint(folder: Path, geometry: ModelGeometry, seed: int = 0, *, half: bool = False) -> None:
    """Write a checkpoint with random weights, `half` in fp16: for latency work without trained ones."""
    modules = new_modules(geometry, seed)
    if half:
        for name in FOLDERS:
            getattr(modules, name).half()
    with staged(folder) as stage:
        save_checkpoint(stage, modules, PipelineConfig.model_validate(geometry.pipeline), scheduler_of(geometry))


def scheduler_of(geometry: ModelGeometry) -> dict[str, Any]:
    """The arguments of the training scheduler."""
    return {**geometry.scheduler, "prediction_type": geometry.prediction_type, "clip_sample": False}


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint; raises `CheckpointError` naming the component, the file and what was expected."""
    _check_safe(folder)
    index = _read_json(folder / INDEX, "the checkpoint's index")
    try:
        pipeline = PipelineConfig.model_validate(index.get("parure", {}))
    except ValidationError as error:
        raise CheckpointError(f"{folder / INDEX}: {first_fault(error, 'parure')}") from error
    loaded = {name: load_module(folder, name) for name in FOLDERS}
    modules = RawModules(**loaded)
    _check_fit(folder, modules)
    return Checkpoint(
        modules=modules,
        pipeline=pipeline,
        scheduler_config=_read_json(folder / "scheduler" / "scheduler_config.json", "the training scheduler"),
        sha256=checkpoint_hash(folder),
    )


def checkpoint_hash(folder: Path) -> str:
    """One sha256 over every file's name and content."""
    digest = hashlib.sha256()
    for path in _files(folder):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _check_safe(folder: Path) -> None:
    """The folder is there, and nothing in it would have to be unpickled."""
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} is not a folder; expected a folder with {INDEX} in it")
    for path in _files(folder):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise CheckpointError(
                f"{path} is a pickle file, which can run code when it is opened; parure never opens one; "
                "save the module with safe_serialization=True and delete this file"
            )


def _read_json(path: Path, subject: str) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; expected {subject} there")
    try:
        content = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); expected {subject}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected {subject}, a JSON object")
    return content


def load_module(folder: Path, name: str) -> Any:
    """One module from its subfolder, with its failure told in the checkpoint's words."""
    expected = f"a {FOLDERS[name].__name__} saved with safe_serialization=True"
    if not (folder / name).is_dir():
        raise CheckpointError(
            f"checkpoint {folder} lacks component {name}: expected the folder {name}/ with {expected}"
        )
    _read_json(folder / name / "config.json", f"the configuration of component {name}")
    if not list((folder / name).glob("*.safetensors")):
        raise CheckpointError(f"{folder / name} has no .safetensors file; expected {expected}")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        module, report = FOLDERS[name].from_pretrained(
            folder / name,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **{_DTYPE_ARGUMENT[FOLDERS[name].__module__.split(".")[0]]: _stored_dtype(folder / name)},
        )
    except Exception as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"component {name} in {folder / name} cannot be read: {detail}; expected {expected}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"component {name}: {len(missing)} weights are missing in {folder / name}, the first is {missing[0]}"
        )
    return module.eval()


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type of the weights in `folder`, the widest where they differ."""
    found: set[torch.dtype] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            kinds = {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        found |= {_DTYPES[kind] for kind in kinds if kind in _DTYPES}
    return reduce(torch.promote_types, found) if found else torch.float32


def _check_fit(folder: Path, m: RawModules) -> None:
    """The modules' sizes agree with one another, as the loop's tensors demand."""
    latent = m.vae.config.latent_channels
    head = m.mask_head.config
    facts = [
        ("unet", "in_channels", m.unet.config.in_channels, 2 * latent + 1),
        ("unet", "out_channels", m.unet.config.out_channels, latent),
        ("reference_net", "in_channels", m.reference_net.config.in_channels, latent + 1),
        ("reference_net", "sample_size", m.reference_net.config.sample_size, m.unet.config.sample_size),
        (
            "reference_net",
            "block_out_channels",
            tuple(m.reference_net.config.block_out_channels),
            tuple(m.unet.config.block_out_channels),
        ),
        ("mask_head", "latent_size", head.latent_size, m.unet.config.sample_size),
        (
            "image_encoder",
            "projection_dim",
            m.image_encoder.config.projection_dim,
            m.unet.config.cross_attention_dim,
        ),
    ]
    for component, key, received, expected in facts:
        if received != expected:
            raise CheckpointError(
                f"component {component}: {key} is {received}, expected {expected} to fit the other components; "
                f"see {folder / component / 'config.json'}"
            )
