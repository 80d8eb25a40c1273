"""Decoding is safe: every rule on what is accepted, and one error type for everything else."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from parure import image as image_module
from parure.errors import ImageError, InputError
from parure.image import load_image, load_mask, save_png

FORMATS = ("JPEG", "PNG", "WEBP")
EXIF_ORIENTATION = 0x0112
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}}


def scene(height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth picture without symmetry, uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 3
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(picture: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, compressed_rows: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", compressed_rows) + chunk(b"IEND", b"")


def black_png(width: int, height: int) -> bytes:
    """A whole, valid grey PNG, made without holding its pixels."""
    deflate = zlib.compressobj(1)
    row = bytes(width + 1)
    return png(width, height, 8, 0, b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush())


def is_one_sentence(message: str) -> bool:
    return "\n" not in message and not re.search(r"[.!?]\s+[A-Z]", message) and "; expected " in message


# What is accepted


@pytest.mark.parametrize("file_format", sorted(LOSSLESS))
def test_path_string_bytes_and_pillow_image_give_the_same_pixels(file_format: str, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(scene()), file_format, **LOSSLESS[file_format])
    path = tmp_path / "picture.bin"  # the name's ending does not matter
    path.write_bytes(data)
    for source in (path, str(path), data, Image.open(path)):
        pixels = load_image(source)
        assert pixels.dtype == np.uint8
        assert pixels.flags.writeable
        np.testing.assert_array_equal(pixels, scene())


def test_jpeg_is_read() -> None:
    pixels = load_image(encoded(Image.fromarray(scene()), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - scene()).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", FORMATS)
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    turn = image_module._UPRIGHT.get(orientation)
    upright = Image.fromarray(scene())
    undo = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    stored = upright if turn is None else upright.transpose(undo.get(turn, turn))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options: dict[str, object] = {"quality": 95} if file_format == "JPEG" else dict(LOSSLESS[file_format])
    data = encoded(stored, file_format, exif=exif, **options)
    pixels = load_image(data)
    assert pixels.shape == scene().shape
    assert np.abs(pixels.astype(int) - scene()).mean() < 4
    assert load_mask(data).shape == scene().shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(scene()), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(load_image(data), scene())


def swapped_profile() -> bytes:
    """An sRGB profile whose red and blue primaries are exchanged: its effect cannot be missed."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swap = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    return re.sub(rb"[rb]XYZ", lambda match: swap[match.group()], profile, count=2)


@pytest.mark.parametrize("file_format", FORMATS)
def test_icc_profile_is_converted_to_srgb(file_format: str) -> None:
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    options = {"quality": 95} if file_format == "JPEG" else LOSSLESS[file_format]
    data = encoded(red, file_format, icc_profile=swapped_profile(), **options)
    r, g, b = load_image(data)[8, 8]
    assert b > 240
    assert max(r, g) < 15


@pytest.mark.parametrize("profile", [b"not a profile", swapped_profile()[:200]], ids=["text", "cut"])
def test_broken_icc_profile_is_ignored(profile: bytes) -> None:
    data = encoded(Image.fromarray(scene()), "PNG", icc_profile=profile)
    np.testing.assert_array_equal(load_image(data), scene())


def test_icc_profile_of_another_colour_space_is_ignored() -> None:
    grey = Image.new("L", (4, 4), 100)
    data = encoded(grey, "JPEG", icc_profile=swapped_profile(), quality=95)
    assert set(load_image(data).ravel()) <= {99, 100, 101}


@pytest.mark.parametrize("file_format", sorted(LOSSLESS))
def test_alpha_is_laid_over_white(file_format: str) -> None:
    picture = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        picture.putpixel((x, 0), (200, 0, 0, alpha))
    options = dict(LOSSLESS[file_format], exact=True) if file_format == "WEBP" else {}
    clear, half, solid = load_image(encoded(picture, file_format, **options))[0]
    assert clear.tolist() == [255, 255, 255]
    assert half.tolist() == [227, 127, 127]
    assert solid.tolist() == [200, 0, 0]


def test_palette_transparency_is_laid_over_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    assert load_image(encoded(picture, "PNG", transparency=1))[0].tolist() == [[10, 20, 30], [255] * 3]
    soft = load_image(encoded(picture, "PNG", transparency=bytes([255, 128])))[0]
    assert soft.tolist() == [[10, 20, 30], [147, 152, 157]]


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    rows = zlib.compress(b"\0" + struct.pack(">4H", 0, 257, 0x8080, 65535))
    assert load_image(png(4, 1, 16, 0, rows))[0, :, 0].tolist() == [0, 1, 128, 255]
    transparent = png(4, 1, 16, 0, rows, chunk(b"tRNS", struct.pack(">H", 257)))
    assert load_image(transparent)[0, :, 0].tolist() == [0, 255, 128, 255]


def test_sixteen_bit_colour_is_read() -> None:
    rows = zlib.compress(b"\0" + struct.pack(">3H", 65535, 0x8000, 0))
    assert load_image(png(1, 1, 16, 2, rows))[0, 0].tolist() == [255, 128, 0]


def test_cmyk_jpeg_is_read() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    r, g, b = load_image(data)[8, 8]
    assert r > 245
    assert max(g, b) < 10


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16"]
)
def test_every_mode_gives_three_bytes_per_pixel(mode: str) -> None:
    assert load_image(Image.new(mode, (5, 3))).shape == (3, 5, 3)
    assert load_mask(Image.new(mode, (5, 3))).shape == (3, 5)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_known_range_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match=f"photo .*mode {mode}.*expected"):
        load_image(Image.new(mode, (5, 3)))


def test_a_pillow_image_is_not_changed() -> None:
    picture = Image.new("RGBA", (5, 3), (1, 2, 3, 4))
    load_image(picture)
    assert picture.mode == "RGBA"
    assert picture.getpixel((0, 0)) == (1, 2, 3, 4)


# Arrays


def test_arrays_are_accepted_and_copied() -> None:
    pixels = load_image(scene())
    np.testing.assert_array_equal(pixels, scene())
    source = scene()
    load_image(source)[:] = 0
    np.testing.assert_array_equal(source, scene())
    grey = load_image(scene()[..., 0])
    np.testing.assert_array_equal(grey, np.stack([scene()[..., 0]] * 3, axis=-1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_in_0_to_1_are_rounded(dtype: type) -> None:
    np.testing.assert_array_equal(load_image((scene() / 255).astype(dtype)), scene())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 3, 4, 4), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool),
        np.full((4, 4, 3), 1.5),
        np.full((4, 4, 3), -0.1),
        np.full((4, 4, 3), np.nan),
        np.full((4, 4, 3), np.inf),
        np.zeros((4, 4, 3), np.complex64),
        np.array([[None]]),
        np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)),
        np.broadcast_to(np.uint8(0), (20_000, 1)),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError) as error:
        load_image(array, subject="ornament")
    assert str(error.value).startswith("ornament (ndarray) ")
    assert is_one_sentence(str(error.value))


# Masks


def test_a_mask_is_float_in_0_to_1() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = load_mask(encoded(Image.fromarray(grey), "PNG"), shape=(16, 16))
    assert mask.dtype == np.float32
    np.testing.assert_allclose(mask, grey / 255, atol=1e-7)
    np.testing.assert_array_equal(load_mask(grey), mask)
    np.testing.assert_array_equal(load_mask(grey / np.float32(255)), mask)


def test_a_boolean_mask_is_accepted() -> None:
    mask = load_mask(np.eye(3, dtype=bool))
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, np.eye(3))


def test_transparent_parts_of_a_mask_are_zero() -> None:
    picture = Image.new("LA", (2, 1), (255, 0))
    picture.putpixel((1, 0), (255, 255))
    assert load_mask(picture).tolist() == [[0.0, 1.0]]


def test_a_mask_ignores_colour_profiles() -> None:
    picture = Image.new("RGB", (2, 2), (255, 0, 0))
    plain = load_mask(encoded(picture, "PNG"))
    np.testing.assert_array_equal(load_mask(encoded(picture, "PNG", icc_profile=swapped_profile())), plain)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ImageError, match=r"ornament mask .*is 5 x 3 pixels; expected 7 x 6 pixels.*resize"):
        load_mask(np.zeros((3, 5), np.uint8), shape=(6, 7), subject="ornament mask")


@pytest.mark.parametrize("array", [np.zeros((3, 5, 3), np.uint8), np.full((3, 5), 2.0), np.zeros((3, 5), np.int32)])
def test_other_mask_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="mask"):
        load_mask(array)


# What is refused


def write(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "picture.png"
        path.write_bytes(data)
        return path

    return make


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


SMALL_PNG = encoded(Image.fromarray(scene()), "PNG")
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "no.png", "does not exist"),
    "missing folder": (lambda folder: folder / "no" / "no.png", "does not exist"),
    "directory": (lambda folder: folder, "is a directory"),
    "fifo": (fifo, "is not a regular file"),
    "empty": (write(b""), "is empty"),
    "text": (write(b"hello, I am not a picture"), "starts with"),
    "one byte": (write(b"\xff"), "starts with"),
    "gif": (write(encoded(Image.fromarray(scene()), "GIF")), "starts with"),
    "bmp": (write(encoded(Image.fromarray(scene()), "BMP")), "starts with"),
    "tiff": (write(encoded(Image.fromarray(scene()), "TIFF")), "starts with"),
    "eps": (write(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "starts with"),
    "truncated png": (write(SMALL_PNG[:-60]), "cannot be read"),
    "magic only": (write(SMALL_PNG[:8]), "cannot be read"),
    "truncated jpeg": (write(encoded(Image.fromarray(scene()), "JPEG")[:-200]), "cannot be read"),
    "truncated webp": (write(encoded(Image.fromarray(scene()), "WEBP")[:-40]), "cannot be read"),
    "long side": (write(black_png(16_385, 1)), "16385 x 1 pixels"),
    "many pixels": (write(black_png(10_000, 5_001)), "10000 x 5001 pixels"),
}


@pytest.mark.parametrize("load", [load_image, load_mask])
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_subject_path_problem_and_expectation(
    case: str, load: Callable[..., object], tmp_path: Path
) -> None:
    make, problem = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(ImageError) as error:
        load(path, subject="ornament")
    message = str(error.value)
    assert message.startswith(f"ornament {str(path)!r} ")
    assert problem in message
    assert is_one_sentence(message)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000], ids=["null byte", "too long"])
def test_impossible_names_are_image_errors(name: str) -> None:
    with pytest.raises(ImageError, match="photo "):
        load_image(name)


@pytest.mark.parametrize("source", [None, 3, [[0]], io.BytesIO(SMALL_PNG)])
def test_other_types_are_refused(source: object) -> None:
    with pytest.raises(ImageError, match=r"photo .*expected a path, bytes"):
        load_image(source)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_an_image_error(tmp_path: Path) -> None:
    path = write(SMALL_PNG)(tmp_path)
    path.chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        load_image(path)


def test_permission_errors_are_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(SMALL_PNG)(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match=re.escape(f"photo {str(path)!r} may not be read")) as error:
        load_image(path)
    assert isinstance(error.value.__cause__, PermissionError)


@pytest.mark.parametrize(
    "problem",
    [SyntaxError("x"), struct.error("x"), OSError("x"), MemoryError(), EOFError(), ValueError("x\ny")],
)
def test_whatever_pillow_raises_is_translated(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(image_module, "PngImageFile", fail)
    with pytest.raises(ImageError) as error:
        load_image(SMALL_PNG)
    assert error.value.__cause__ is problem
    assert type(problem).__name__ in str(error.value)
    assert is_one_sentence(str(error.value))


def test_files_over_the_byte_limit_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as stream:
        stream.truncate(image_module.MAX_BYTES + 1)
    with pytest.raises(ImageError, match=r"photo .*67,108,865 bytes; expected at most 67,108,864 bytes"):
        load_image(path)


def test_bytes_over_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_BYTES", len(SMALL_PNG) - 1)
    with pytest.raises(ImageError, match="bytes; expected at most"):
        load_image(SMALL_PNG)


def test_a_decompression_bomb_is_refused_in_little_memory_and_without_a_warning(tmp_path: Path) -> None:
    path = write(black_png(20_000, 20_000))(tmp_path)
    process = psutil.Process()
    load_image(SMALL_PNG)  # warm: plug-ins and profiles are loaded
    before = process.memory_info().rss
    for _ in range(3):
        with warnings.catch_warnings(), pytest.raises(ImageError, match=r"20000 x 20000 pixels.*50 megap"):
            warnings.simplefilter("error")
            load_image(path)
    assert process.memory_info().rss - before < 20e6


@pytest.mark.soak
def test_a_decompression_bomb_is_refused_fast(tmp_path: Path) -> None:
    path = write(black_png(20_000, 20_000))(tmp_path)
    times = []
    for _ in range(20):  # the machine may be busy: the best counts
        start = time.perf_counter()
        with pytest.raises(ImageError):
            load_image(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_a_webp_that_declares_a_huge_canvas_is_refused_in_little_memory() -> None:
    data = bytearray(encoded(Image.new("RGB", (100, 100)), "WEBP", lossless=True))
    process = psutil.Process()
    before = process.memory_info().rss
    for side in (10_000, 16_383):
        data[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14)
        with pytest.raises(ImageError, match="pixels; expected at most"):
            load_image(bytes(data))
    assert process.memory_info().rss - before < 20e6


# A corpus of damaged files: a picture or an ImageError, nothing else


def intact(file_format: str) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    return encoded(Image.fromarray(scene(48, 40)), file_format, exif=exif, icc_profile=swapped_profile(), quality=90)


def damaged(data: bytes, seed: int) -> bytes:
    dice = random.Random(seed)
    broken = bytearray(data)
    if dice.random() < 0.3:
        return bytes(broken[: dice.randrange(len(broken))])
    for _ in range(dice.choice((1, 2, 8, 64))):
        place = dice.randrange(min(len(broken), dice.choice((64, len(broken)))))
        broken[place] ^= 1 << dice.randrange(8)
    return bytes(broken)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("cases", [150, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_damaged_files_are_read_or_refused(cases: int, file_format: str) -> None:
    data = intact(file_format)
    refused = 0
    for seed in range(cases):
        for load in (load_image, load_mask):
            try:
                pixels = load(damaged(data, seed))
            except ImageError as exc:
                assert is_one_sentence(str(exc)), seed
                refused += 1
            else:
                assert pixels.size > 0
    assert refused > 20


ANY_BYTES = given(
    start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBP"]),
    rest=st.binary(),
)


def read_or_refused(start: bytes, rest: bytes) -> None:
    try:
        load_image(start + rest)
    except ImageError as exc:
        assert str(exc).startswith("photo (")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, deadline=None)
@ANY_BYTES
def test_any_bytes_are_read_or_refused(start: bytes, rest: bytes) -> None:
    read_or_refused(start, rest)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=10_000, deadline=None)
@ANY_BYTES
def test_many_more_bytes_are_read_or_refused(start: bytes, rest: bytes) -> None:
    read_or_refused(start, rest)


# Writing


def test_save_png_writes_what_load_image_reads(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", scene())
    save_png(str(tmp_path / "b.png"), scene() / 255)
    save_png(tmp_path / "c.png", scene()[..., 0])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), scene())
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), scene())
    np.testing.assert_array_equal(load_image(tmp_path / "c.png")[..., 1], scene()[..., 0])


def test_save_png_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    save_png(path, scene())

    def half_written(self: Image.Image, stream: io.BufferedWriter, **_: object) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(InputError, match=re.escape(f"output {str(path)!r}") + ".*No space left on device"):
        save_png(path, np.zeros_like(scene()))
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(load_image(path), scene())


def test_save_png_obeys_the_umask(tmp_path: Path) -> None:
    save_png(tmp_path / "a.png", scene())
    (tmp_path / "b.png").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b.png").stat().st_mode


def test_save_png_names_the_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "no" / "a.png", tmp_path, Path("a\0b")):
        with pytest.raises(InputError) as error:
            save_png(place, scene())
        assert str(error.value).startswith(f"output {str(place)!r} cannot be written")
        assert is_one_sentence(str(error.value))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        save_png(tmp_path / "a.png", scene())
    assert list(tmp_path.iterdir()) == []


def test_save_png_refuses_other_arrays(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"shape \[1, 3, 4, 4\]"):
        save_png(tmp_path / "a.png", np.zeros((1, 3, 4, 4), np.uint8))
