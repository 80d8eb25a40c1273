"""The ornament try-on pipeline: prepare -> loop -> compose."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from parure.bundle import Bundle
from parure.components import ComponentRunner, Stopwatch
from parure.errors import BoxError, InputError, RequestError
from parure.executor import Executor, FloatArray
from parure.geometry import Box, Region, crop_region, downsample_mask, from_model, region_alpha, to_model
from parure.image import Pixels, Source, load_image, load_mask
from parure.loop import LoopOptions, Noise, Ornament, Person, Step, denoise
from parure.manifest import Geometry, Manifest
from parure.solver import Solver, SolverTable
from parure.wire import Timings, Wire

if TYPE_CHECKING:
    from parure.shared_tensors import SharedMemory

Preview = Literal["none", "latents", "decode"]
Backend = Literal["onnxruntime", "tensorrt"]


@dataclass(frozen=True)
class Result:
    """A finished picture.

    `image`: the photo with the ornament, pixels outside the region bit-identical to the photo's; `mask`: the
    predicted wearing mask at the photo's size (mode L); `crop`: the model's own square picture, float32
    [S, S, 3] in 0..1; `masks`: the predicted mask after every step, float32 [K, s, s]; `timings`: seconds by
    part, with `total`, and in `timings.wire` bytes sent to and received from a server; `region`: the square of the
    photo that the model saw.
    """

    image: Image.Image
    mask: Image.Image
    crop: FloatArray
    masks: FloatArray
    box_mask: FloatArray
    latents: FloatArray
    region: Region
    timings: Timings
    calls: dict[str, int]

    @property
    def wire(self) -> Wire:
        """Bytes of messages exchanged with a server for this picture."""
        return self.timings.wire


@dataclass(frozen=True)
class Progress:
    """One step of a picture in the making: `mask` float32 [s, s]; `preview` uint8 [., ., 3] of the crop or None.

    The last one carries the `result`.
    """

    step: int
    steps: int
    mask: FloatArray
    preview: Pixels | None
    result: Result | None = None


@dataclass(frozen=True)
class Request:
    """A request whose every field has been read and checked."""

    photo: Pixels
    ornament: Pixels
    ornament_mask: FloatArray | None
    region: Region
    table: SolverTable
    seed: int
    options: LoopOptions


class TryOn:
    """Puts ornaments onto photos with one bundle, wherever its components run. A context manager."""

    def __init__(self, executor: Executor, load_solver: Callable[[str], Solver], *, kept_ornaments: int = 64) -> None:
        """`load_solver` gives the solver of a name in the manifest; `kept_ornaments` bounds the ornament cache."""
        self.executor = executor
        self._load_solver = load_solver
        self._solvers: dict[str, Solver] = {}
        self._kept: OrderedDict[str, Ornament] = OrderedDict()
        self._kept_limit = kept_ornaments
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        return self.executor.manifest

    def __call__(
        self,
        photo: Source,
        ornament: Source,
        box: Box | tuple[float, float, float, float],
        *,
        ornament_mask: Source | None = None,
        steps: int | None = None,
        seed: int = 0,
        solver: str | None = None,
        guidance: float | None = None,
        mask_loop: bool = True,
    ) -> Result:
        """Put `ornament` onto `photo` inside `box` = (left, top, right, bottom), in photo pixels.

        Pictures are paths, bytes, PIL images or uint8 arrays [H, W, 3]. `steps`, `solver` and `guidance`
        default to what the bundle says. `mask_loop=False` keeps the box as the mask (alpha = 0 in Eq. 2).
        Raises `ImageError`, `BoxError`, `RequestError` before any work; `ServerError` where a server fails.
        """
        request = self._request(photo, ornament, box, ornament_mask, steps, seed, solver, guidance, mask_loop)
        for progress in self._run(request, "none"):
            if progress.result is not None:
                return progress.result
        raise AssertionError("the loop ended without a result")

    def stream(
        self,
        photo: Source,
        ornament: Source,
        box: Box | tuple[float, float, float, float],
        *,
        ornament_mask: Source | None = None,
        steps: int | None = None,
        seed: int = 0,
        solver: str | None = None,
        guidance: float | None = None,
        mask_loop: bool = True,
        preview: Preview = "latents",
    ) -> Iterator[Progress]:
        """As calling the object, one `Progress` per step; the last carries the result, equal to the call's.

        `preview`: `latents` projects latents to colours (s x s, nearly free), `decode` runs the VAE decoder.
        """
        request = self._request(photo, ornament, box, ornament_mask, steps, seed, solver, guidance, mask_loop)
        return self._run(request, preview)

    def _run(self, request: Request, preview: Preview) -> Iterator[Progress]:
        watch = Stopwatch()
        run = ComponentRunner(self.executor, watch)
        ornament = self._ornament(run, request)
        person = self._person(run, request)
        noise = Noise.draw(request.seed, request.table, person.masked_latents.shape)
        masks: list[FloatArray] = []
        for step in denoise(run, person, ornament, request.table, noise, request.options):
            masks.append(step.predicted_mask[0, 0])
            picture = self._preview(run, step, preview)
            if step.index + 1 < step.count:
                yield Progress(step.index + 1, step.count, masks[-1], picture)
        result = self._compose(run, request, person, step, np.stack(masks))
        yield Progress(step.count, step.count, masks[-1], picture, result)

    def _request(
        self, photo: Source, ornament: Source, box: Box | tuple[float, float, float, float],
        ornament_mask: Source | None, steps: int | None, seed: int, solver: str | None, guidance: float | None,
        mask_loop: bool,
    ) -> Request:  # fmt: skip
        """Read and check everything before any work is done."""
        loop, geometry = self.manifest.loop, self.manifest.geometry
        table = self._table(solver or loop.default_solver, loop.default_steps if steps is None else steps)
        chosen_guidance = loop.default_guidance if guidance is None else guidance
        _check_guidance(chosen_guidance, loop.guidance)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise RequestError(f"seed is {seed!r}; expected a whole number from 0 on")
        pixels = load_image(photo, subject="photo")
        ornament_pixels = load_image(ornament, subject="ornament")
        mask = None
        if ornament_mask is not None:
            mask = load_mask(
                ornament_mask, shape=(ornament_pixels.shape[0], ornament_pixels.shape[1]), subject="ornament mask"
            )
        return Request(
            photo=pixels,
            ornament=ornament_pixels,
            ornament_mask=mask,
            region=_region(_as_box(box), pixels, geometry),
            table=table,
            seed=seed,
            options=LoopOptions(chosen_guidance, mask_loop),
        )

    def _table(self, name: str, steps: int) -> SolverTable:
        known = {spec.name: spec for spec in self.manifest.solvers}
        if name not in known:
            raise RequestError(f"solver {name!r} is not in this bundle; it has {', '.join(sorted(known))}")
        limit = known[name].max_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= limit:
            raise RequestError(f"steps is {steps!r}; expected a whole number from 1 to {limit}")
        with self._lock:
            if name not in self._solvers:
                self._solvers[name] = self._load_solver(name)
        return self._solvers[name].table(steps)

    def _ornament(self, run: ComponentRunner, request: Request) -> Ornament:
        """Tokens and features of the ornament; kept, since they depend on nothing else (the manifest says so)."""
        key = _content_key(request.ornament, request.ornament_mask)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        computed = self._encode_ornament(run, request)
        if self.manifest.loop.ornament_features_cacheable:
            with self._lock:
                self._kept[key] = computed
                while len(self._kept) > self._kept_limit:
                    self._kept.popitem(last=False)
        return computed

    def _encode_ornament(self, run: ComponentRunner, request: Request) -> Ornament:
        since = time.perf_counter()
        geometry, encoder = self.manifest.geometry, self.manifest.image_encoder
        square = _square(request.ornament)
        side = geometry.latent_size
        M_o = np.ones((1, 1, side, side), np.float32)
        if request.ornament_mask is not None:
            mask = np.rint(request.ornament_mask * 255).astype(np.uint8)
            padded = _resized(_square(mask, fill=0), geometry.size)
            M_o = downsample_mask(padded.astype(np.float32) / 255, side)[None, None]
        picture = _resized(square, geometry.size)
        pixels = _resized(picture, encoder.size).astype(np.float32) / 255
        normalised = (pixels - np.array(encoder.mean, np.float32)) / np.array(encoder.std, np.float32)
        run.watch.add("preprocess", since)
        z_o = run.vae_encoder(to_model(picture.astype(np.float32) / 255))
        c = run.image_encoder(np.ascontiguousarray(normalised.transpose(2, 0, 1)[None], dtype=np.float32))
        return Ornament(tokens=c, features=run.reference_net(z_o, M_o, c))

    def _person(self, run: ComponentRunner, request: Request) -> Person:
        since = time.perf_counter()
        geometry = self.manifest.geometry
        crop = to_model(request.region.crop(request.photo, geometry.size))
        box = request.region.box_mask(geometry.size)
        blanked = np.ascontiguousarray(crop * (1 - box), dtype=np.float32)
        M_box = downsample_mask(box, geometry.latent_size)[None, None]
        run.watch.add("preprocess", since)
        return Person(masked_latents=run.vae_encoder(blanked), box_mask=M_box)

    def _preview(self, run: ComponentRunner, step: Step, preview: Preview) -> Pixels | None:
        if preview == "none":
            return None
        if preview == "decode":
            picture = from_model(run.vae_decoder(step.denoised))
        else:
            weights = np.array(self.manifest.geometry.preview, np.float32)  # [latent channels + 1, 3]
            latents = step.denoised[0].transpose(1, 2, 0)
            picture = np.clip((latents @ weights[:-1] + weights[-1] + 1) / 2, 0, 1)
        pixels: Pixels = np.rint(picture * 255).astype(np.uint8)
        return pixels

    def _compose(self, run: ComponentRunner, request: Request, person: Person, last: Step, masks: FloatArray) -> Result:
        geometry = self.manifest.geometry
        decoded = run.vae_decoder(last.latents)
        since = time.perf_counter()
        crop = from_model(decoded)
        if geometry.compose == "mask" and request.options.mask_loop:
            alpha = region_alpha(masks[-1], geometry.size, geometry.feather)
        else:
            alpha = request.region.box_alpha(geometry.size, geometry.feather)
        image = request.region.paste(request.photo, crop, alpha)
        mask = np.rint(request.region.mask_to_photo(masks[-1]) * 255).astype(np.uint8)
        run.watch.add("compose", since)
        seconds = {part: sum(values) for part, values in run.watch.seconds.items()}
        return Result(
            image=Image.fromarray(image),
            mask=Image.fromarray(mask),
            crop=crop,
            masks=masks,
            box_mask=person.box_mask[0, 0],
            latents=last.latents,
            region=request.region,
            timings=Timings(seconds | {"total": run.watch.total()}, run.watch.meter.wire),
            calls={part: len(values) for part, values in run.watch.seconds.items()},
        )

    def close(self) -> None:
        """Release the executor; the object cannot be used afterwards."""
        self.executor.close()

    def __enter__(self) -> TryOn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_tryon(
    source: str | Path,
    *,
    deadline: float = 60.0,
    threads: int | None = None,
    backend: Backend = "onnxruntime",
    shared_memory: bool | SharedMemory = False,
    allow_wire_features: bool = False,
) -> TryOn:
    """Open a bundle folder, or a server at `grpc://host:port` or `http://host:port`.

    `deadline` bounds each call to a server, in seconds; `threads` the cores of an in-process component; `backend`
    is what runs a bundle in-process: ONNX Runtime on its graphs, or TensorRT on its engines. `shared_memory` keeps
    large tensors off the wire to a server of this host that allows it; `allow_wire_features` says that they may cross
    the network to a server elsewhere. Raises `BundleError` for a bundle that fails verification, `ServerError` for a
    server that cannot serve it, `InputError` for a server elsewhere without that consent.
    """
    if "://" in str(source):
        return _served(str(source), deadline, shared_memory, allow_wire_features)
    if shared_memory or allow_wire_features:
        raise InputError(
            f"{source} is a bundle folder, which runs in this process; shared memory and wire features are for a "
            "server: give its URL, or leave them out"
        )
    bundle = Bundle.open(source)
    specs = {spec.name: spec for spec in bundle.manifest.solvers}
    return TryOn(_in_process(bundle, threads, backend), lambda name: Solver.load(specs[name], bundle.root))


def _served(url: str, deadline: float, shared_memory: bool | SharedMemory, allow_wire_features: bool) -> TryOn:
    from parure.locality import require_consent, require_local
    from parure.shared_tensors import SharedMemory
    from parure.triton import TritonExecutor
    from parure.triton_transport import open_transport

    transport = open_transport(url, deadline)
    options = SharedMemory() if shared_memory is True else (shared_memory or None)
    if options is not None:
        require_local(url)
    remote = TritonExecutor(url, deadline=deadline, transport=transport, shared_memory=options)
    try:
        require_consent(url, remote.manifest, allowed=allow_wire_features)
    except InputError:
        remote.close()
        raise
    return TryOn(remote, remote.solver)


def _in_process(bundle: Bundle, threads: int | None, backend: Backend) -> Executor:
    if backend == "tensorrt":
        from parure.tensorrt_executor import TensorRtExecutor

        return TensorRtExecutor(bundle)
    from parure.onnx_executor import OnnxExecutor

    return OnnxExecutor(bundle, threads=threads)


def _as_box(box: Box | tuple[float, float, float, float]) -> Box:
    if isinstance(box, Box):
        return box
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError) as error:
        raise BoxError(f"box is {box!r}; expected four numbers, left, top, right, bottom, in photo pixels") from error
    return Box(left, top, right, bottom)


def _region(box: Box, photo: Pixels, geometry: Geometry) -> Region:
    """The region of `box`; raises `BoxError` also for a box so narrow that its crop holds none of it."""
    region = crop_region(box, photo.shape, geometry.enlarge)
    if min(box.width, box.height) * geometry.latent_size < region.side:
        longest = geometry.latent_size / geometry.enlarge
        raise BoxError(
            f"box {box} is {box.width:g} x {box.height:g} pixels, so narrow that the model cannot see it; expected "
            f"a longer side of at most {longest:.0f} x the shorter one; draw it wider"
        )
    return region


def _check_guidance(guidance: float, form: str) -> None:
    if not np.isfinite(guidance) or guidance < 0:
        raise RequestError(f"guidance is {guidance!r}; expected a finite number from 0 on (1 switches it off)")
    if form == "none" and guidance != 1.0:
        raise RequestError(f"guidance is {guidance!r}, but this bundle's model was not trained for guidance; use 1")


def _content_key(ornament: Pixels, mask: FloatArray | None) -> str:
    digest = hashlib.sha256(str(ornament.shape).encode())
    digest.update(ornament.tobytes())
    if mask is not None:
        digest.update(mask.tobytes())
    return digest.hexdigest()


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
