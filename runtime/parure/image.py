"""Safe decoding: from a path, bytes, a Pillow image or an array to plain pixels, or to one `ImageError`.

Limits are checked on the file's size and then on the header, before a pixel is decoded. Whatever Pillow
raises on a damaged file is translated in one place, `_translated`.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from parure.errors import ImageError, InputError

MAX_BYTES = 64 * 1024 * 1024
MAX_SIDE = 16_384
MAX_PIXELS = 50_000_000

Pixels = NDArray[np.uint8]
Mask = NDArray[np.float32]
Source = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

_FORMATS = "a JPEG, PNG or WEBP file"
_LIMITS = f"at most {MAX_SIDE:,} pixels a side and {MAX_PIXELS // 1_000_000} megapixels"
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: Source, *, subject: str = "photo") -> Pixels:
    """The picture as uint8 [H, W, 3] in sRGB, upright, over white; of an animation, its first frame.

    EXIF orientation and ICC profile are applied; broken ones are ignored. Arrays are uint8 or floating
    point in 0..1 (converted by rounding), [H, W, 3] or [H, W] (grey), and are copied.
    Raises `ImageError`, which names `subject` and the path.
    """
    label = _label(source, subject)
    if isinstance(source, np.ndarray):
        pixels = _bytes_of(source, label)
        return pixels.copy() if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    with _translated(label), _opened(source, label) as image:
        return np.array(_upright(_over_white(image), image), dtype=np.uint8)


def load_mask(source: Source, *, shape: tuple[int, int] | None = None, subject: str = "mask") -> Mask:
    """The mask as float32 [H, W] in 0..1; 1 (white) marks the region.

    Of a colour picture it is the luminance, and what is transparent counts as 0: a mask lies over black.
    Values are numbers and not colours, so a colour profile is ignored. Arrays are [H, W], boolean, uint8, or
    floating point in 0..1. Raises `ImageError`, also where the size is not `shape`, (H, W).
    """
    label = _label(source, subject)
    if isinstance(source, np.ndarray):
        if source.ndim != 2:
            raise _refusal(label, f"has shape {list(source.shape)}", "[H, W]", "pass one channel")
        values = source.astype(np.float32) if source.dtype == bool else source
        _bytes_of(values, label)
        mask = values.astype(np.float32) / (255 if values.dtype == np.uint8 else 1)
    else:
        with _translated(label), _opened(source, label) as image:
            colour, alpha = _split_alpha(image)
            mask = np.asarray(_upright(_grey(colour), image), np.float32) / 255
            if alpha is not None:
                mask = mask * (np.asarray(_upright(alpha, image), np.float32) / 255)
    if shape is not None and mask.shape != shape:
        received, expected = (f"{width} x {height} pixels" for height, width in (mask.shape, shape))
        raise _refusal(label, f"is {received}", f"{expected}, the size of its picture", "resize the mask")
    return mask.astype(np.float32, copy=False)


def save_png(path: str | os.PathLike[str], array: NDArray[Any]) -> None:
    """Write [H, W, 3] or [H, W], uint8 or floating point in 0..1, as a PNG.

    The file appears whole or not at all: it is written beside `path` and then renamed. Raises `InputError`
    where the place cannot be written.
    """
    target = Path(path)
    picture = Image.fromarray(np.ascontiguousarray(_bytes_of(array, f"picture for {str(target)!r}")))
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        try:
            with part.open("xb") as stream:
                picture.save(stream, format="PNG")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise InputError(
            f"output {str(target)!r} cannot be written ({reason}); expected a file name in a folder that "
            "exists and is writable; choose another place or change its permissions"
        ) from exc


def _refusal(label: str, received: str, expected: str, advice: str) -> ImageError:
    return ImageError(f"{label} {received}; expected {expected}; {advice}")


def _label(source: object, subject: str) -> str:
    """How messages name the picture: its subject and its path, or what else it came as."""
    if isinstance(source, str | os.PathLike):
        return f"{subject} {os.fsdecode(source)!r}"
    if isinstance(source, bytes):
        return f"{subject} ({len(source):,} bytes)"
    return f"{subject} ({type(source).__name__})"


@contextmanager
def _translated(label: str) -> Iterator[None]:
    """Turn everything that Pillow, zlib or the system raises on a bad picture into `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:
        raise _refusal(label, "declares too many pixels", _LIMITS, "make it smaller") from exc
    except FileNotFoundError as exc:
        raise _refusal(label, "does not exist", _FORMATS, "check the path") from exc
    except PermissionError as exc:
        advice = "change the permissions of the file or of its folder"
        raise _refusal(label, "may not be read (permission denied)", _FORMATS, advice) from exc
    except Exception as exc:
        reason = " ".join(f"{type(exc).__name__}: {exc}".split())[:200]
        raise _refusal(
            label, f"cannot be read ({reason})", f"{_FORMATS} that is whole", "check it or export it again"
        ) from exc


@contextmanager
def _opened(source: object, label: str) -> Iterator[Image.Image]:
    """The decoded picture, whose bytes, sides and pixels were checked before it was decoded."""
    if isinstance(source, Image.Image):
        _check_size(*source.size, label)
        if source.mode in ("I", "F"):
            received = f"has mode {source.mode}, whose range is unknown"
            raise _refusal(label, received, "8-bit or 16-bit pixels", "convert it to L or RGB")
        source.load()
        yield source
    elif isinstance(source, bytes):
        _check_bytes(len(source), label)
        yield _decoded(BytesIO(source), label)
    elif isinstance(source, str | os.PathLike):
        path = Path(os.fsdecode(source))
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise _refusal(label, f"is {kind}", _FORMATS, "name a picture file")
        _check_bytes(status.st_size, label)
        with path.open("rb") as stream:
            yield _decoded(stream, label)
    else:
        expected = "a path, bytes, a Pillow image or an array"
        raise _refusal(label, "is not a picture", expected, "pass one of these")


def _decoded(stream: IO[bytes], label: str) -> Image.Image:
    """Decode with the one plug-in that the first bytes name.

    `Image.open` is not used: it warns or raises on its own, higher limit before the header's size can be
    read, and silencing that warning would change the state of the whole process.
    """
    start = stream.read(16)
    stream.seek(0)
    opener: type[ImageFile]
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        opener = PngImageFile
    elif start.startswith(b"\xff\xd8\xff"):
        opener = JpegImageFile
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        opener = WebPImageFile
    else:
        raise _refusal(label, f"starts with {start[:8]!r}", _FORMATS, "convert it to one of these")
    image = opener(stream)
    _check_size(*image.size, label)
    image.load()
    return image


def _check_bytes(count: int, label: str) -> None:
    if count == 0:
        raise _refusal(label, "is empty (0 bytes)", _FORMATS, "check where it was written")
    if count > MAX_BYTES:
        limit = f"at most {MAX_BYTES:,} bytes"
        raise _refusal(label, f"has {count:,} bytes", limit, "make it smaller or compress it")


def _check_size(width: int, height: int, label: str) -> None:
    received = f"is {width} x {height} pixels"
    if min(width, height) < 1:
        raise _refusal(label, received, "at least one pixel", "check where it came from")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise _refusal(label, received, _LIMITS, "make it smaller")


def _bytes_of(array: NDArray[Any], label: str) -> Pixels:
    """The array as uint8, [H, W, 3] or [H, W], checked."""
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        expected = "[H, W, 3] or [H, W]"
        raise _refusal(label, f"has shape {list(array.shape)}", expected, "pass pixels last, without a batch")
    _check_size(array.shape[1], array.shape[0], label)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise _refusal(label, f"has type {array.dtype}", "uint8, or floating point in 0..1", "convert it")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also false for NaN
        received = f"has values from {low:g} to {high:g}"
        raise _refusal(label, received, "floating point in 0..1, or uint8", "scale it to 0..1")
    pixels: Pixels = np.rint(array * 255.0).astype(np.uint8)
    return pixels


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour as L, RGB or CMYK, and alpha as L, or None where the picture is opaque."""
    if image.mode.startswith("I;16"):
        return _split_grey16(image)
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        layered = image.convert("LA" if grey else "RGBA")
        return layered.convert("L" if grey else "RGB"), layered.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _split_grey16(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    values = np.asarray(image)
    colour = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return colour, None
    return colour, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    """RGB in sRGB, transparent parts over white."""
    colour, alpha = _split_alpha(image)
    colour = _srgb(colour, image.info.get("icc_profile"))
    if alpha is None:
        return colour
    return Image.composite(colour, Image.new("RGB", colour.size, "white"), alpha)


def _srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB by the ICC profile; without one, or with one that is broken or of another colour space, plainly."""
    if profile:
        try:
            embedded = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(colour, embedded, _srgb_profile(), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            converted = None
        if converted is not None:
            return converted
    return colour.convert("RGB")


@cache
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _grey(colour: Image.Image) -> Image.Image:
    return colour.convert("RGB").convert("L") if colour.mode == "CMYK" else colour.convert("L")


def _upright(converted: Image.Image, original: Image.Image) -> Image.Image:
    """`converted` turned as the EXIF orientation of `original` asks; broken EXIF asks for nothing."""
    try:
        turn = _UPRIGHT.get(original.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # EXIF parsing has no typed errors
        return converted
    return converted if turn is None else converted.transpose(turn)
