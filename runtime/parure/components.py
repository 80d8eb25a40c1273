"""The components by name, typed: the loop calls these, an executor carries them out, a clock times them."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

import numpy as np

from parure.executor import Array, Executor, FloatArray
from parure.modes import DEEP_OUTPUT, SHALLOW_UNET
from parure.wire import Meter, metered


class Stopwatch:
    """Seconds spent, by part of the work, calls spared, bytes sent and received. One per request."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.spared = Counter[str]()
        self.meter = Meter()

    def add(self, part: str, since: float) -> None:
        self.seconds[part].append(time.perf_counter() - since)

    def spare(self, *components: str) -> None:
        """A fast mode did without these calls, which exact mode would have made."""
        self.spared.update(components)

    def total(self) -> float:
        return time.perf_counter() - self.started


class ComponentRunner:
    """Calls components in the manifest's types. Features stay as they come; everything else is float32."""

    def __init__(self, executor: Executor, watch: Stopwatch) -> None:
        self.executor = executor
        self.watch = watch

    def vae_encoder(self, image: FloatArray) -> FloatArray:
        """image [B, 3, S, S] in -1..1 -> latents [B, 4, s, s]."""
        return self._call("vae_encoder", "latents", image=image)

    def image_encoder(self, pixels: FloatArray) -> FloatArray:
        """pixels [B, 3, P, P], normalised -> tokens [B, n, d]."""
        return self._call("image_encoder", "tokens", pixels=pixels)

    def reference_net(self, latents: FloatArray, mask: FloatArray, tokens: FloatArray) -> FloatArray:
        """latents [B, 4, s, s], mask [B, 1, s, s], tokens [B, n, d] -> packed features [B, L]."""
        return self._call("reference_net", "features", latents=latents, mask=mask, tokens=tokens)

    def mask_head(self, model_features: FloatArray, ornament_features: FloatArray, mask: FloatArray) -> FloatArray:
        """packed features [B, L] twice, mask [B, 1, s, s] -> mask [B, 1, s, s] in 0..1."""
        return self._call(
            "mask_head", "predicted_mask", model_features=model_features, ornament_features=ornament_features, mask=mask
        )

    def unet(
        self, latents: FloatArray, masked_latents: FloatArray, mask: FloatArray, timestep: FloatArray,
        tokens: FloatArray, ornament_features: FloatArray, model_features: FloatArray,
    ) -> FloatArray:  # fmt: skip
        """Everything the U-Net sees, timestep [B] per sample -> noise [B, 4, s, s]."""
        return self._call(
            "unet", "noise", latents=latents, masked_latents=masked_latents, mask=mask, timestep=timestep,
            tokens=tokens, ornament_features=ornament_features, model_features=model_features,
        )  # fmt: skip

    def unet_with_deep(
        self, latents: FloatArray, masked_latents: FloatArray, mask: FloatArray, timestep: FloatArray,
        tokens: FloatArray, ornament_features: FloatArray, model_features: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:  # fmt: skip
        """As `unet`, and the deep features [B, C, h, w] that `unet_shallow` takes; a bundle need not have them."""
        noise, deep = self._calls(
            "unet", ("noise", DEEP_OUTPUT), latents=latents, masked_latents=masked_latents, mask=mask,
            timestep=timestep, tokens=tokens, ornament_features=ornament_features, model_features=model_features,
        )  # fmt: skip
        return np.asarray(noise, np.float32), deep

    def unet_shallow(
        self, latents: FloatArray, masked_latents: FloatArray, mask: FloatArray, timestep: FloatArray,
        tokens: FloatArray, ornament_features: FloatArray, model_features: FloatArray, deep: FloatArray,
    ) -> FloatArray:  # fmt: skip
        """As `unet`, by its outer blocks alone, on the deep features of another step."""
        return self._call(
            SHALLOW_UNET, "noise", latents=latents, masked_latents=masked_latents, mask=mask, timestep=timestep,
            tokens=tokens, ornament_features=ornament_features, model_features=model_features, deep=deep,
        )  # fmt: skip

    def vae_decoder(self, latents: FloatArray) -> FloatArray:
        """latents [B, 4, s, s] -> image [B, 3, S, S], about -1..1."""
        return self._call("vae_decoder", "image", latents=latents)

    def _call(self, component: str, output: str, **inputs: Array) -> FloatArray:
        result = self._calls(component, (output,), **inputs)[0]
        return result if output == "features" else np.asarray(result, np.float32)

    def _calls(self, component: str, outputs: tuple[str, ...], **inputs: Array) -> tuple[Array, ...]:
        spec = self.executor.manifest.component(component)
        typed = {t.name: inputs[t.name].astype(t.dtype, copy=False) for t in spec.inputs}
        since = time.perf_counter()
        with metered(self.watch.meter):
            found = self.executor.run(component, typed, outputs)
        self.watch.add(component, since)
        return tuple(found[name] for name in outputs)
