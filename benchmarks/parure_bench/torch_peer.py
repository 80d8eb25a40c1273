"""PyTorch as a peer: the checkpoint's own modules, eager or compiled, behind the executor's call shape."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from parure.bundle import Bundle
from parure.errors import InputError, ParureError
from parure.executor import Array, Arrays, wanted_outputs
from parure.manifest import Component, Manifest, Precision
from parure.modes import SHALLOW_UNET
from parure_export.checkpoint import Checkpoint, load_checkpoint
from parure_export.model import Components
from parure_export.onnx_export import INPUTS


def open_checkpoint(folder: Path, bundle: Bundle) -> Checkpoint:
    """The checkpoint that `bundle` was made of; raises `InputError` for another one."""
    checkpoint = load_checkpoint(folder)
    if checkpoint.sha256 != bundle.manifest.checkpoint_sha256:
        raise InputError(
            f"checkpoint {folder} has sha256 {checkpoint.sha256[:12]}..., the bundle was exported from "
            f"{bundle.manifest.checkpoint_sha256[:12]}...; peers must have the same weights: name the checkpoint of the "
            "bundle"
        )
    return checkpoint


def torch_components(checkpoint: Checkpoint, bundle: Bundle) -> Components:
    """The modules on the GPU in the bundle's precision where there is a GPU, or else on the CPU in fp32."""
    device, dtype = torch.device("cpu"), torch.float32
    if torch.cuda.is_available():
        device = torch.device("cuda")
        types = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
        dtype = types.get(bundle.manifest.precision, torch.float32)
    names = {component.name for component in bundle.manifest.components}
    components = checkpoint.components(bundle.manifest.features.form, deep_reuse=SHALLOW_UNET in names)
    for _, module in components.items():
        module.to(device, dtype).requires_grad_(False)  # in place
    return components


class TorchExecutor:
    """Runs modules in-process. On a GPU every call's tensors come from the host and go back to it, as for all executors."""

    def __init__(self, bundle: Bundle, components: Components, *, compiled: bool = False) -> None:
        self.bundle = bundle
        self.name = "torch-compile" if compiled else "torch"
        self._modules: dict[str, Callable[..., Any]] = dict(components.items())
        if compiled:
            self._modules = {name: torch.compile(module) for name, module in self._modules.items()}
        self._weight = next(components.unet.parameters())
        self._unused = {component.name: self._not_exported(component) for component in bundle.manifest.components}

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def identity(self) -> str:
        return self.bundle.identity

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        spec = self.manifest.component(component)
        arguments = {t.name: self._here(inputs[t.name], exact=t.name == "timestep") for t in spec.inputs}
        try:
            with torch.inference_mode():
                given = self._modules[component](**self._unused[component], **arguments)
                every = given if isinstance(given, tuple) else (given,)
                results = {t.name: tensor.float().cpu().numpy() for t, tensor in zip(spec.outputs, every, strict=True)}
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ParureError(f"{self.name} failed in {component}: {reason}; leave it out of --backend") from error
        outputs = wanted_outputs(spec, wanted)
        return {t.name: results[t.name].astype(t.dtype, copy=False) for t in outputs}

    def close(self) -> None:
        self._modules = {}

    def _not_exported(self, component: Component) -> dict[str, torch.Tensor]:
        """What the module is given and does not use, so that the graph does without it: zeros."""
        taken = {tensor.name for tensor in component.inputs}
        shapes = {tensor.name: tensor.shape for tensor in self.manifest.component("unet").inputs}
        return {
            name: torch.zeros(1, *shapes[name], device=self._weight.device, dtype=self._weight.dtype)
            for name in INPUTS[component.name]
            if name not in taken
        }

    def _here(self, array: Array, *, exact: bool) -> torch.Tensor:
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self._weight.device, torch.float32 if exact else self._weight.dtype)
