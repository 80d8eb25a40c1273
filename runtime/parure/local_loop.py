"""One picture over an executor: prepare -> denoise -> decode. The same code in-process, at a client, inside a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from parure.components import ComponentRunner, Stopwatch
from parure.executor import Executor, FloatArray
from parure.geometry import downsample_mask, from_model, to_model
from parure.image import Pixels
from parure.loop import Noise, Ornament, Person, Step, denoise
from parure.manifest import Manifest
from parure.ornaments import OrnamentCache, ornament_key
from parure.request import Request
from parure.solver import Solver
from parure.wire import Wire

Preview = Literal["none", "latents", "decode"]


@dataclass(frozen=True)
class Made:
    """What the loop gives, before it is laid onto the photo; fields as in `Result`."""

    crop: FloatArray
    masks: FloatArray
    box_mask: FloatArray
    latents: FloatArray
    seconds: dict[str, float]
    calls: dict[str, int]
    spared: dict[str, int] = field(default_factory=dict)
    wire: Wire = field(default_factory=Wire)


@dataclass(frozen=True)
class Seen:
    """One step, as `Progress`; the last one carries what was `made`."""

    step: int
    steps: int
    mask: FloatArray
    preview: Pixels | None
    made: Made | None = None


class Loop(Protocol):
    """Where pictures are made: `LocalLoop` over an executor, or `ServerLoop`."""

    place: Literal["client", "server"]

    @property
    def manifest(self) -> Manifest: ...

    @property
    def identity(self) -> str:
        """Of the bundle, as `Executor.identity`."""

    @property
    def name(self) -> str:
        """How it is reached, as `Executor.name`."""

    def run(self, request: Request, preview: Preview | None) -> Generator[Seen, None, None]:
        """A picture, step by step; closing the iterator gives it up. `preview` None: only the last step matters."""

    def close(self) -> None: ...


class Solvers:
    """The solvers of a bundle, each read when it is first used. Safe to share between threads."""

    def __init__(self, load: Callable[[str], Solver]) -> None:
        self._load = load
        self._loaded: dict[str, Solver] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Solver:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            return self._loaded[name]


class LocalLoop:
    """The loop in this process, over an executor whose components may run anywhere."""

    place: Literal["client", "server"] = "client"

    def __init__(
        self,
        executor: Executor,
        solvers: Solvers,
        ornaments: OrnamentCache | None = None,
        *,
        joined: bool = False,
        ahead: bool = False,
    ) -> None:
        """`joined` and `ahead` as in `LoopOptions`: they belong to the executor, which gains from them or does not."""
        self.executor = executor
        self._joined, self._ahead = joined, ahead
        self.ornaments = OrnamentCache() if ornaments is None else ornaments
        self._solvers = solvers

    @property
    def manifest(self) -> Manifest:
        return self.executor.manifest

    @property
    def identity(self) -> str:
        return self.executor.identity

    @property
    def name(self) -> str:
        return self.executor.name

    def run(
        self, request: Request, preview: Preview | None, watch: Stopwatch | None = None
    ) -> Generator[Seen, None, None]:
        """As `Loop.run`; `watch` is told what takes how long, also where the picture fails."""
        run = ComponentRunner(self.executor, watch or Stopwatch())
        table = self._solvers[request.solver].table(request.steps)
        ornament = self._ornament(run, request)
        person = self._person(run, request)
        noise = Noise.draw(request.seed, table, person.masked_latents.shape)
        options = replace(request.options, joined=self._joined, ahead=self._ahead)
        masks: list[FloatArray] = []
        with closing(denoise(run, person, ornament, table, noise, options)) as steps:
            for step in steps:
                masks.append(step.predicted_mask[0, 0])
                picture = self._preview(run, step, preview)
                if step.index + 1 < step.count:
                    yield Seen(step.index + 1, step.count, masks[-1], picture)
        yield Seen(step.count, step.count, masks[-1], picture, _made(run, person, step, np.stack(masks)))

    def close(self) -> None:
        self.executor.close()

    def _ornament(self, run: ComponentRunner, request: Request) -> Ornament:
        """Tokens and features of the ornament; kept, since they depend on nothing else (the manifest says so)."""
        if not self.manifest.loop.ornament_features_cacheable:
            return self._encode_ornament(run, request)
        key = ornament_key(self.executor.identity, request.ornament, request.ornament_mask)
        return self.ornaments.get(key, lambda: self._encode_ornament(run, request))

    def _encode_ornament(self, run: ComponentRunner, request: Request) -> Ornament:
        since = time.perf_counter()
        geometry, encoder = self.manifest.geometry, self.manifest.image_encoder
        picture, mask = fitted_ornament(request, geometry.size)
        side = geometry.latent_size
        M_o = np.ones((1, 1, side, side), np.float32)
        if mask is not None:
            M_o = downsample_mask(mask.astype(np.float32) / 255, side)[None, None]
        pixels = _resized(picture, encoder.size).astype(np.float32) / 255
        normalised = (pixels - np.array(encoder.mean, np.float32)) / np.array(encoder.std, np.float32)
        run.watch.add("preprocess", since)
        z_o = run.vae_encoder(to_model(picture.astype(np.float32) / 255))
        c = run.image_encoder(np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], dtype=np.float32))
        return Ornament(tokens=c, features=run.reference_net(z_o, M_o, c))

    def _person(self, run: ComponentRunner, request: Request) -> Person:
        since = time.perf_counter()
        geometry = self.manifest.geometry
        crop = to_model(request.crop(geometry.size))
        box = request.region.box_mask(geometry.size)
        blanked = np.ascontiguousarray(crop * (1 - box), dtype=np.float32)
        M_box = downsample_mask(box, geometry.latent_size)[None, None]
        run.watch.add("preprocess", since)
        return Person(masked_latents=run.vae_encoder(blanked), box_mask=M_box)

    def _preview(self, run: ComponentRunner, step: Step, preview: Preview | None) -> Pixels | None:
        if preview in (None, "none"):
            return None
        if preview == "decode":
            picture = from_model(run.vae_decoder(step.denoised()))
        else:
            weights = np.array(self.manifest.geometry.preview, np.float32)  # [latent channels + 1, 3]
            latents = step.denoised()[0].transpose(1, 2, 0)
            picture = np.clip((latents @ weights[:-1] + weights[-1] + 1) / 2, 0, 1)
        pixels: Pixels = np.rint(picture * 255).astype(np.uint8)
        return pixels


def fitted_ornament(request: Request, size: int) -> tuple[Pixels, Pixels | None]:
    """The ornament as the model sees it, uint8 [size, size, 3], and its mask, uint8 [size, size].

    Done to what is fitted already, it changes nothing.
    """
    picture = _resized(_square(request.ornament), size)
    if request.ornament_mask is None:
        return picture, None
    mask = np.rint(request.ornament_mask * 255).astype(np.uint8)
    return picture, _resized(_square(mask, fill=0), size)


def _made(run: ComponentRunner, person: Person, last: Step, masks: FloatArray) -> Made:
    crop = from_model(run.vae_decoder(last.latents))
    return Made(
        crop=crop,
        masks=masks,
        box_mask=person.box_mask[0, 0],
        latents=last.latents,
        seconds={part: sum(values) for part, values in run.watch.seconds.items()} | {"total": run.watch.total()},
        calls={part: len(values) for part, values in run.watch.seconds.items()},
        spared=dict(run.watch.spared),
        wire=run.watch.meter.wire,
    )


def _square(pixels: Pixels, fill: int = 255) -> Pixels:
    """Pad the shorter axis evenly, with white for pictures."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    padding = [((side - height) // 2, side - height - (side - height) // 2)]
    padding += [((side - width) // 2, side - width - (side - width) // 2)]
    return np.pad(pixels, padding + [(0, 0)] * (pixels.ndim - 2), constant_values=fill)


def _resized(pixels: Pixels, size: int) -> Pixels:
    if pixels.shape[0] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
