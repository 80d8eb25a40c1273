"""The ornament try-on pipeline: read -> loop -> compose."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from PIL import Image

from parure.bundle import Bundle
from parure.errors import InputError
from parure.executor import Executor, FloatArray
from parure.geometry import Box, Region, region_alpha
from parure.image import Pixels, Source
from parure.local_loop import LocalLoop, Loop, Made, Preview, Seen, Solvers
from parure.manifest import Geometry, Manifest
from parure.modes import Mode
from parure.request import Asked, Request, read_request
from parure.solver import Solver
from parure.wire import Timings, Wire

if TYPE_CHECKING:
    from parure.shared_tensors import SharedMemory

Backend = Literal["onnxruntime", "openvino", "openvino-bf16", "tensorrt"]
Where = Literal["server", "client"]


@dataclass(frozen=True)
class Result:
    """A finished picture.

    `image`: the photo with the ornament, pixels outside the region bit-identical to the photo's; `mask`: the
    predicted wearing mask at the photo's size (mode L); `crop`: the model's own square picture, float32
    [S, S, 3] in 0..1; `masks`: the predicted mask after every step, float32 [K, s, s]; `timings`: seconds by
    part, with `total`, and in `timings.wire` bytes sent to and received from a server; `region`: the square of the
    photo that the model saw; `mode`: how the loop ran; `calls` of every part, and those that the mode `spared`.

    Where the loop ran on a server, `crop`, and `masks` before the last one, were rounded to 8 bits on their way.
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
    mode: Mode
    spared: dict[str, int]

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


class TryOn:
    """Puts ornaments onto photos with one bundle, wherever its loop runs. A context manager; safe to share."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    @property
    def manifest(self) -> Manifest:
        return self.loop.manifest

    @property
    def identity(self) -> str:
        """The identity of the bundle, wherever it runs."""
        return self.loop.identity

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
        mode: str | Mode | None = None,
    ) -> Result:
        """Put `ornament` onto `photo` inside `box` = (left, top, right, bottom), in photo pixels.

        Pictures are paths, bytes, PIL images or uint8 arrays [H, W, 3]. `steps`, `solver` and `guidance`
        default to what the bundle says. `mask_loop=False` keeps the box as the mask (alpha = 0 in Eq. 2). `mode` is
        exact unless another is asked for, by name or by settings: docs/fast-modes.md.
        Raises `ImageError`, `BoxError`, `RequestError` before any work; `ServerError` where a server fails.
        """
        asked = Asked(photo, ornament, box, ornament_mask, steps, seed, solver, guidance, mask_loop, mode=mode)
        request = read_request(asked, self.manifest)
        for progress in self._progress(request, self.loop.run(request, None)):
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
        mode: str | Mode | None = None,
        preview: Preview = "latents",
    ) -> Iterator[Progress]:
        """As calling the object, one `Progress` per step; the last carries the result, equal to the call's.

        `preview`: `latents` projects latents to colours (s x s, nearly free), `decode` runs the VAE decoder.
        Closing the iterator gives the picture up.
        """
        asked = Asked(photo, ornament, box, ornament_mask, steps, seed, solver, guidance, mask_loop, mode=mode)
        request = read_request(asked, self.manifest)
        return self._progress(request, self.loop.run(request, preview))

    def _progress(self, request: Request, steps: Generator[Seen, None, None]) -> Iterator[Progress]:
        with closing(steps):
            for seen in steps:
                result = None if seen.made is None else compose(request, seen.made, self.manifest.geometry)
                yield Progress(seen.step, seen.steps, seen.mask, seen.preview, result)

    def close(self) -> None:
        """Release the executor; the object cannot be used afterwards."""
        self.loop.close()

    def __enter__(self) -> TryOn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def compose(request: Request, made: Made, geometry: Geometry) -> Result:
    """Lay what was made onto the photo; `request.photo` must be the whole photo."""
    since = time.perf_counter()
    if geometry.compose == "mask" and request.options.mask_loop:
        alpha = region_alpha(made.masks[-1], geometry.size, geometry.feather)
    else:
        alpha = request.region.box_alpha(geometry.size, geometry.feather)
    image = request.region.paste(request.photo, made.crop, alpha)
    mask = request.region.mask_to_photo(made.masks[-1])
    spent = time.perf_counter() - since
    return Result(
        image=Image.fromarray(image),
        mask=Image.fromarray(mask),
        crop=made.crop,
        masks=made.masks,
        box_mask=made.box_mask,
        latents=made.latents,
        region=request.region,
        timings=Timings(made.seconds | {"compose": spent, "total": made.seconds["total"] + spent}, made.wire),
        calls=made.calls | {"compose": 1},
        mode=request.options.mode,
        spared=made.spared,
    )


def open_tryon(
    source: str | Path,
    *,
    deadline: float = 60.0,
    threads: int | None = None,
    backend: Backend = "onnxruntime",
    join_guidance: bool = False,
    work_ahead: bool = False,
    loop: Where | None = None,
    shared_memory: bool | SharedMemory = False,
    allow_wire_features: bool = False,
) -> TryOn:
    """Open a bundle folder, or a server at `grpc://host:port` or `http://host:port`.

    `loop` says where the loop runs: on the `server`, one request per picture (the default where the server has the
    model for it), or at the `client`, one request per component call. `deadline` bounds each of these requests, in
    seconds; `threads` the cores of an in-process component; `backend` is what runs a bundle in-process: ONNX Runtime or
    OpenVINO on its graphs (`openvino-bf16` rounds inside, where the CPU has bf16), or TensorRT on its engines.
    `join_guidance` runs both passes of guidance in-process as one batch of two, which computes the same up to rounding.
    `work_ahead` makes the next step's mask in-process while the U-Net is at this step, as loops over a server always
    do: the same picture, sooner where a component alone does not fill the machine.

    For the client loop: `shared_memory` keeps large tensors off the wire to a server of this host that allows it, and
    `allow_wire_features` says that they may cross the network to a server elsewhere. Raises `BundleError` for a bundle
    that fails verification, `ServerError` for a server that cannot serve it, `InputError` for arguments that do not
    go together, and for a client loop with a server elsewhere without that consent.
    """
    if "://" in str(source):
        if join_guidance:
            raise InputError(f"{source} is a server, which forms its batches itself; leave join_guidance out")
        if work_ahead:
            raise InputError(f"{source} is a server, whose loops work ahead by themselves; leave work_ahead out")
        from parure.server_loop import open_remote

        return TryOn(open_remote(str(source), deadline, loop, shared_memory, allow_wire_features))
    given = {"loop": loop, "shared_memory": shared_memory, "allow_wire_features": allow_wire_features}
    if wrong := [name for name, value in given.items() if value]:
        raise InputError(
            f"{source} is a bundle folder, which runs in this process; {wrong[0]} is for a server: give its URL, or "
            "leave it out"
        )
    bundle = Bundle.open(source)
    if join_guidance and bundle.manifest.max_batch < 2:
        raise InputError(f"{source} takes no batch of two; export it with --max-batch 2, or leave join_guidance out")
    executor = open_executor(bundle, threads, backend)
    return TryOn(LocalLoop(executor, solvers_of(bundle), joined=join_guidance, ahead=work_ahead))


def solvers_of(bundle: Bundle) -> Solvers:
    specs = {spec.name: spec for spec in bundle.manifest.solvers}
    return Solvers(lambda name: Solver.load(specs[name], bundle.root))


def open_executor(bundle: Bundle, threads: int | None, backend: Backend) -> Executor:
    """What runs the components of `bundle` in this process."""
    if backend == "tensorrt":
        from parure.tensorrt_executor import TensorRtExecutor

        return TensorRtExecutor(bundle)
    if backend.startswith("openvino"):
        from parure.openvino_executor import OpenVinoExecutor

        return OpenVinoExecutor(bundle, threads=threads, hint="bf16" if backend == "openvino-bf16" else "f32")
    from parure.onnx_executor import OnnxExecutor

    return OnnxExecutor(bundle, threads=threads)
