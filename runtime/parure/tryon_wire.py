"""What travels between a client and the server loop: the tensors of the models `tryon` and `tryon_unary`.

    `tryon`        decoupled: one response per step (unless `stream` is none), and a last one with the picture
    `tryon_unary`  the same without streaming, for unary gRPC and plain HTTP: the last response only

In a stream an error begins with its status code (`coded`), since Triton's stream carries an error's text alone. Triton
can end the stream with a status code instead, where the metadata `triton_grpc_error` asks for it: 2.51 crashes of that
when many calls are refused at once.

Pictures travel encoded, and whichever is smaller: the file as it came, or a PNG of what the model sees of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from parure.errors import InvalidReply, ParureError, RequestError
from parure.executor import Array, FloatArray
from parure.geometry import downsample_mask
from parure.image import MAX_BYTES, Pixels, load_image, load_mask
from parure.local_loop import Made, Preview, Seen, fitted_ornament
from parure.manifest import Geometry
from parure.modes import EXACT, Mode
from parure.request import Asked, Request, encoded

TRYON_MODEL = "tryon"
UNARY_MODEL = "tryon_unary"
AT_WORK_PARAMETER = "at_work"
WAITING_PARAMETER = "waiting"
TRACE_PARAMETER = "traceparent"

Stream = Literal["none", "masks", "latents", "decode"]
Wanted = Literal["photo", "crop"]


@dataclass(frozen=True)
class WireTensor:
    """A tensor of the models `tryon` and `tryon_unary`; `datatype` as Triton calls it."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


INPUTS = (
    WireTensor("photo", "UINT8", (-1,)),
    WireTensor("ornament", "UINT8", (-1,)),
    WireTensor("box", "FP64", (4,)),  # FP32 would move an edge like 182.3, and with it the picture
    WireTensor("ornament_mask", "UINT8", (-1,), optional=True),
    WireTensor("photo_size", "INT32", (2,), optional=True),
    WireTensor("steps", "INT32", (1,), optional=True),
    WireTensor("seed", "UINT64", (1,), optional=True),
    WireTensor("solver", "BYTES", (1,), optional=True),
    WireTensor("guidance", "FP64", (1,), optional=True),
    WireTensor("mask_loop", "BOOL", (1,), optional=True),
    WireTensor("mode", "BYTES", (1,), optional=True),
    WireTensor("stream", "BYTES", (1,), optional=True),
    WireTensor("result", "BYTES", (1,), optional=True),
    WireTensor("deadline", "FP64", (1,), optional=True),
)
OUTPUTS = (
    WireTensor("step", "INT32", (2,)),
    WireTensor("mask", "UINT8", (-1,)),
    WireTensor("preview", "UINT8", (-1,)),
    WireTensor("picture", "UINT8", (-1,)),
    WireTensor("mask_values", "FP32", (-1, -1)),
    WireTensor("masks", "UINT8", (-1,)),
    WireTensor("latents", "FP32", (-1, -1, -1)),
    WireTensor("timings", "BYTES", (1,)),
)
_CODED = re.compile(r"^(?:\[request id: [^]]*\] )?(?P<code>[A-Z_]+): (?P<message>.*)", re.DOTALL)
_PICTURES = ("photo", "ornament", "ornament_mask")


def coded(code: str, message: str) -> str:
    """`message` with its gRPC status code before it, as `code_of` reads it."""
    return f"{code}: {message}"


def code_of(text: str) -> tuple[str, str] | None:
    """Status code and message of what `coded` made; None for any other text. The code may be any word in capitals."""
    found = _CODED.match(text)
    return None if found is None else (found["code"], found["message"])


@dataclass(frozen=True)
class Call:
    """What one request asks of the server. `deadline`: seconds from its arrival on, None: as long as it takes."""

    asked: Asked
    stream: Stream
    wanted: Wanted
    deadline: float | None


def call_tensors(request: Request, preview: Preview | None, deadline: float, geometry: Geometry) -> dict[str, Array]:
    """The inputs that ask for `request`; with `preview` None, nobody watches the steps."""
    stream: Stream = "none" if preview is None else "masks" if preview == "none" else preview
    return {
        **_photo(request, geometry.size),
        **_ornament(request, geometry.size),
        "box": np.array([getattr(request.region.box, side) for side in ("left", "top", "right", "bottom")], np.float64),
        "steps": np.array([request.steps], np.int32),
        "seed": np.array([request.seed], np.uint64),
        "solver": _text(request.solver),
        "guidance": np.array([request.options.guidance], np.float64),
        "mask_loop": np.array([request.options.mask_loop], np.bool_),
        **({} if request.options.mode == EXACT else {"mode": _text(str(request.options.mode))}),
        "stream": _text(stream),
        "result": _text("crop"),
        "deadline": np.array([deadline], np.float64),
    }


def read_call(inputs: Mapping[str, Array]) -> Call:
    """What `inputs` ask for, by name; raises `RequestError` naming the field. Pictures are not decoded yet."""
    for tensor in INPUTS:
        if tensor.name not in inputs and not tensor.optional:
            raise RequestError(f"{tensor.name} is missing; expected {tensor.datatype} {list(tensor.dims)}; send it")
    for name in _PICTURES:
        if name in inputs and inputs[name].size > MAX_BYTES:
            raise RequestError(
                f"{name} has {inputs[name].size:,} bytes; expected at most {MAX_BYTES:,}; make it smaller"
            )
    pictures = {name: inputs[name].tobytes() for name in _PICTURES if name in inputs}
    one = {name: array.ravel()[0] for name, array in inputs.items() if name not in (*_PICTURES, "box", "photo_size")}
    size = inputs.get("photo_size")
    deadline = float(one["deadline"]) if "deadline" in one else None
    if deadline is not None and not deadline > 0:
        raise RequestError(f"deadline is {deadline!r}; expected seconds above 0, or leave it out")
    asked = Asked(
        photo=pictures["photo"],
        ornament=pictures["ornament"],
        box=_four(inputs["box"]),
        ornament_mask=pictures.get("ornament_mask"),
        steps=int(one["steps"]) if "steps" in one else None,
        seed=int(one.get("seed", 0)),
        solver=_word(one["solver"]) if "solver" in one else None,
        guidance=float(one["guidance"]) if "guidance" in one else None,
        mask_loop=bool(one.get("mask_loop", True)),
        photo_size=None if size is None else (int(size[0]), int(size[1])),
        mode=Mode.parse(_word(one["mode"])) if "mode" in one else None,
    )
    wanted = _choice(one, "result", get_args(Wanted), "photo" if size is None else "crop")
    if wanted == "photo" and size is not None:
        raise RequestError("result is 'photo', but with photo_size only a crop was sent; ask for 'crop'")
    return Call(asked, _choice(one, "stream", get_args(Stream), "none"), wanted, deadline)


def seen_tensors(seen: Seen) -> dict[str, Array]:
    """The outputs that tell of one step."""
    tensors: dict[str, Array] = {"step": np.array([seen.step, seen.steps], np.int32), "mask": png(_bytes(seen.mask))}
    return tensors if seen.preview is None else tensors | {"preview": png(seen.preview)}


def made_tensors(made: Made) -> dict[str, Array]:
    """The outputs that let a client build its `Made` again."""
    return {
        "picture": png(_bytes(made.crop)),
        "mask_values": np.ascontiguousarray(made.masks[-1], np.float32),
        # A step's mask in a row: the PNG filter then sees what changed since the step before.
        "masks": png(_bytes(made.masks.reshape(len(made.masks), -1))),
        "latents": np.ascontiguousarray(made.latents[0], np.float32),
    }


def timing_tensor(made: Made, queue: float) -> Array:
    seconds = {part: round(value, 6) for part, value in (made.seconds | {"queue": queue}).items()}
    return _text(json.dumps({"seconds": seconds, "calls": made.calls, "spared": made.spared}))


def read_seen(outputs: Mapping[str, Array], request: Request, geometry: Geometry) -> Seen:
    """One response as the step that it tells of; raises `InvalidReply`."""
    try:
        step, steps = outputs["step"].tolist()
        preview = load_image(outputs["preview"].tobytes()) if "preview" in outputs else None
        made = _read_made(outputs, request, geometry) if "picture" in outputs else None
        mask = load_mask(outputs["mask"].tobytes()) if made is None else made.masks[-1]
        return Seen(step, steps, mask, preview, made)
    except (KeyError, ValueError, TypeError, ParureError) as error:
        raise InvalidReply(
            f"a response of the model {TRYON_MODEL!r} cannot be read ({error}); is the server whole?"
        ) from error


def png(pixels: Pixels) -> Array:
    """A PNG, as bytes in an array."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=4)
    return np.frombuffer(stream.getvalue(), np.uint8)


def _read_made(outputs: Mapping[str, Array], request: Request, geometry: Geometry) -> Made:
    crop = load_image(outputs["picture"].tobytes()).astype(np.float32) / np.float32(255)
    side = geometry.latent_size
    masks = load_mask(outputs["masks"].tobytes()).reshape(-1, side, side).copy()  # PNDM has a step more
    masks[-1] = outputs["mask_values"]
    if crop.shape[:2] != (geometry.size, geometry.size) or not np.isfinite(masks).all():
        raise ValueError(f"a picture of {list(crop.shape)}, expected {[geometry.size] * 2}, and a finite mask")
    told: dict[str, Any] = json.loads(outputs["timings"].ravel()[0])
    return Made(
        crop=crop,
        masks=masks,
        box_mask=downsample_mask(request.region.box_mask(geometry.size), side),
        latents=outputs["latents"][None],
        seconds=told["seconds"],
        calls=told["calls"],
        spared=told.get("spared", {}),
    )


def _photo(request: Request, size: int) -> dict[str, Array]:
    """The file, where it is small; else a PNG of the crop, with the size of the photo that it comes from."""
    crop = png(_bytes(request.crop(size)))
    original = encoded(request.asked.photo)
    if original is not None and len(original) <= crop.size:
        return {"photo": np.frombuffer(original, np.uint8)}
    region = request.region
    return {"photo": crop, "photo_size": np.array([region.photo_height, region.photo_width], np.int32)}


def _ornament(request: Request, size: int) -> dict[str, Array]:
    picture, mask = fitted_ornament(request, size)
    fitted = {"ornament": png(picture)} | ({} if mask is None else {"ornament_mask": png(mask)})
    original = encoded(request.asked.ornament)
    if original is None:
        return fitted
    came = {"ornament": np.frombuffer(original, np.uint8)}
    if request.ornament_mask is not None:
        came["ornament_mask"] = png(_bytes(request.ornament_mask))
    return min(came, fitted, key=lambda tensors: sum(array.size for array in tensors.values()))


def _bytes(values: FloatArray) -> Pixels:
    """0..1 as 0..255; exact for a whole number of 255ths."""
    pixels: Pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return pixels


def _text(word: str) -> Array:
    return np.array([word.encode()], np.object_)


def _word(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _four(box: Array) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(side) for side in box)
    return left, top, right, bottom


def _choice(values: Mapping[str, Any], name: str, choices: tuple[Any, ...], default: str) -> Any:
    word = _word(values[name]) if name in values else default
    if word not in choices:
        raise RequestError(f"{name} is {word!r}; expected one of {', '.join(choices)}")
    return word
