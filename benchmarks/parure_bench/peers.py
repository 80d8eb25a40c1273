"""Who makes the same picture from the same weights: our loop on every backend, and loops that save less."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np

from parure.bundle import Bundle
from parure.components import ComponentRunner, Stopwatch
from parure.errors import InputError
from parure.executor import Executor, FloatArray
from parure.geometry import from_model
from parure.local_loop import LocalLoop, Made
from parure.loop import Noise
from parure.manifest import Manifest
from parure.ornaments import OrnamentCache
from parure.request import Asked, Request, read_request
from parure.solver import SolverTable
from parure.tryon import Backend, Result, TryOn, compose, open_executor, solvers_of
from parure_bench.components import computes_in
from parure_bench.naive import Latents, naive_inputs, naive_latents
from parure_bench.record import Label, Span
from parure_bench.shots import Shot
from parure_bench.spans import SpanExecutor

JOINED = "exact, joined guidance"
TORCH = ("torch", "torch-compile")


@dataclass(frozen=True)
class Setting:
    """One picture as it is asked for; `mask_loop` False keeps the box as the mask."""

    steps: int
    solver: str
    guidance: float
    mask_loop: bool = True

    @property
    def labels(self) -> dict[str, Label]:
        mask = "loop" if self.mask_loop else "box"
        return {"steps": self.steps, "solver": self.solver, "guidance": self.guidance, "mask": mask}


@dataclass(frozen=True)
class Picture:
    """What was made, the component calls it took, and the seconds of the parts around them."""

    crop: FloatArray
    spans: tuple[Span, ...]
    parts: dict[str, float]


@dataclass(frozen=True)
class Way:
    """One way to make a picture, on `executor`; `labels` tell it from the others."""

    labels: dict[str, Label]
    executor: Executor
    make: Callable[[Setting], Picture]

    def fits(self, setting: Setting) -> bool:
        """Joined guidance is nothing of its own where nothing is guided."""
        return self.labels["loop"] != JOINED or setting.guidance != 1.0


Peer = Callable[[], AbstractContextManager[list[Way]]]


def executor_peer(
    bundle: Bundle, backend: str, checkpoint: Path | None, shot: Shot, *, ablation: bool, modes: Sequence[str] = ()
) -> Peer:
    """Our loop on `backend`, exact and in every one of `modes`; with `ablation` also with nothing kept between pictures,
    with nothing saved at all, and with both passes of guidance in one batch.

    On PyTorch, the loop that saves nothing is PyTorch throughout. Raises `InputError` where it needs a checkpoint.
    """
    if backend in TORCH:
        check_torch()
    if backend in TORCH and checkpoint is None:
        raise InputError(f"backend {backend} runs the checkpoint's own modules; give it with --checkpoint DIR")

    return partial(_opened, bundle, backend, checkpoint, shot, ablation, tuple(modes))


@contextmanager
def _opened(
    bundle: Bundle, backend: str, checkpoint: Path | None, shot: Shot, ablation: bool, modes: Sequence[str]
) -> Iterator[list[Way]]:
    if backend in TORCH and checkpoint is not None:
        executor, naive = _torch(bundle, backend, checkpoint, shot)
    else:
        executor = open_executor(bundle, None, cast(Backend, backend))
        naive = _naive(executor, bundle, shot)
    labels = _labels(bundle, backend)
    try:
        kept = OrnamentCache()
        made = {("exact", "kept"): _ours(executor, bundle, shot, kept)}
        if ablation:
            made["exact", "new"] = _ours(executor, bundle, shot, OrnamentCache(0))
            made["naive", "new"] = naive
            if bundle.manifest.max_batch > 1:
                made[JOINED, "kept"] = _ours(executor, bundle, shot, kept, joined=True)
        for mode in modes:
            made[mode, "kept"] = _ours(executor, bundle, shot, kept, mode=mode)
        yield [Way(labels | {"loop": loop, "ornament": held}, executor, make) for (loop, held), make in made.items()]
    finally:
        executor.close()


def check_torch() -> None:
    """Raises `InputError` where PyTorch, or what reads its checkpoints, is not installed."""
    if missing := next((name for name in ("torch", "diffusers") if find_spec(name) is None), None):
        raise InputError(f"peers in PyTorch need {missing}, which is not installed; run `pip install 'parure[export]'`")


def _labels(bundle: Bundle, backend: str) -> dict[str, Label]:
    stored = bundle.manifest.precision
    precision = str(computes_in(stored, backend))
    if backend in TORCH:
        import torch

        precision = str(stored) if torch.cuda.is_available() else "fp32"
    return {"backend": backend, "precision": precision, "features": bundle.manifest.features.form}


def _ours(
    executor: Executor, bundle: Bundle, shot: Shot, ornaments: OrnamentCache, *, joined: bool = False,
    mode: str | None = None,
) -> Callable[[Setting], Picture]:  # fmt: skip
    seen = SpanExecutor(executor)
    tryon = TryOn(LocalLoop(seen, solvers_of(bundle), ornaments, joined=joined))

    def make(setting: Setting) -> Picture:
        seen.begin()
        result = tryon(
            shot.photo, shot.ornament, shot.box, steps=setting.steps, solver=setting.solver,
            guidance=setting.guidance, mask_loop=setting.mask_loop, mode=mode,
        )  # fmt: skip
        return _picture(result, seen.spans)

    return make


def _naive(executor: Executor, bundle: Bundle, shot: Shot) -> Callable[[Setting], Picture]:
    """The loop that saves nothing, over the same executor."""
    seen, solvers = SpanExecutor(executor), solvers_of(bundle)

    def make(setting: Setting) -> Picture:
        seen.begin()
        run = ComponentRunner(seen, Stopwatch())
        request = _request(shot, setting, bundle.manifest)
        since = time.perf_counter()
        inputs = naive_inputs(request, bundle.manifest)
        run.watch.add("preprocess", since)
        table = solvers[setting.solver].table(setting.steps)
        noise = _noise(request, bundle.manifest, table)
        found = naive_latents(run, inputs, table, noise, request.options)
        return _picture(
            _composed(request, bundle.manifest, found, run.vae_decoder(found.latents), run.watch), seen.spans
        )

    return make


def _torch(bundle: Bundle, backend: str, checkpoint: Path, shot: Shot) -> tuple[Executor, Callable[[Setting], Picture]]:
    """An executor over the checkpoint's modules, and papers' code on them: PyTorch from the encoders to the picture."""
    from parure_bench.naive import naive_torch
    from parure_bench.torch_peer import TorchExecutor, open_checkpoint, torch_components
    from parure_export.solvers import build_scheduler

    read = open_checkpoint(checkpoint, bundle)
    components = torch_components(read, bundle)
    solvers = solvers_of(bundle)

    def make(setting: Setting) -> Picture:
        watch = Stopwatch()
        request = _request(shot, setting, bundle.manifest)
        since = time.perf_counter()
        inputs = naive_inputs(request, bundle.manifest)
        watch.add("preprocess", since)
        noise = _noise(request, bundle.manifest, solvers[setting.solver].table(setting.steps))
        scheduler = build_scheduler(setting.solver, read.scheduler_config)
        found, picture = naive_torch(components, inputs, scheduler, setting.steps, noise.start, request.options)
        return _picture(_composed(request, bundle.manifest, found, picture, watch), ())

    return TorchExecutor(bundle, components, compiled=backend == "torch-compile"), make


def _request(shot: Shot, setting: Setting, manifest: Manifest) -> Request:
    asked = Asked(
        shot.photo, shot.ornament, shot.box, steps=setting.steps, solver=setting.solver, guidance=setting.guidance,
        mask_loop=setting.mask_loop,
    )  # fmt: skip
    return read_request(asked, manifest)


def _noise(request: Request, manifest: Manifest, table: SolverTable) -> Noise:
    g = manifest.geometry
    return Noise.draw(request.seed, table, (1, g.latent_channels, g.latent_size, g.latent_size))


def _composed(request: Request, manifest: Manifest, found: Latents, picture: FloatArray, watch: Stopwatch) -> Result:
    seconds = {part: sum(values) for part, values in watch.seconds.items()} | {"total": watch.total()}
    box = np.zeros_like(found.mask[0, 0])
    made = Made(from_model(picture), found.mask[0], box, found.latents, seconds, {})
    return compose(request, made, manifest.geometry)


def _picture(result: Result, spans: tuple[Span, ...]) -> Picture:
    parts = {part: result.timings[part] for part in ("preprocess", "compose") if part in result.timings}
    return Picture(result.crop, spans, parts)
