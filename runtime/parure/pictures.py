"""Pictures for people: the strip of masks, and the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from parure.geometry import Box
from parure.image import Pixels
from parure.tryon import Result

PAPER, INK, FAINT, ACCENT = (250, 249, 246), (32, 33, 36), (120, 122, 128), (196, 58, 48)
GAP = 8


@dataclass(frozen=True)
class Row:
    """One line of a contact sheet: a title, and captioned pictures uint8 [h, w, 3]."""

    title: str
    pictures: Sequence[tuple[str, Pixels]]


def mask_strip(photo: Pixels, result: Result, tile: int = 128, shown: int = 10) -> Pixels:
    """Box, then the predicted mask over the crop after up to `shown` of the steps, then the picture."""
    before = result.region.crop(photo, tile)
    after = result.region.crop(np.asarray(result.image), tile)
    count = len(result.masks)
    chosen = sorted({round(i) for i in np.linspace(0, count - 1, min(shown, count))})
    tiles = [("box", _tinted(before, result.box_mask))]
    tiles += [(f"step {k + 1}", _tinted(before, result.masks[k])) for k in chosen]
    tiles.append(("result", _bytes(after)))
    return _line(tiles, tile, tile)


def contact_sheet(title: str, subtitle: str, rows: Sequence[Row], tile: int = 256) -> Pixels:
    """Rows of captioned pictures under a title, all pictures fitted into squares of `tile` pixels."""
    columns = max(len(row.pictures) for row in rows)
    width = GAP + columns * (tile + GAP)
    head = _text_band(title, width, 30, INK, subtitle)
    parts = [head]
    for row in rows:
        parts.append(_text_band(row.title, width, 18, ACCENT))
        line = _line([(caption, picture) for caption, picture in row.pictures], tile, tile)
        blank = np.full((line.shape[0], width, 3), PAPER, np.uint8)
        blank[:, : line.shape[1]] = line
        parts.append(blank)
    return np.concatenate(parts)


def outlined(photo: Pixels, box: Box) -> Pixels:
    """`photo` with `box` drawn on it."""
    image = Image.fromarray(photo)
    line = max(1, photo.shape[1] // 200)
    ImageDraw.Draw(image).rectangle((box.left, box.top, box.right - 1, box.bottom - 1), outline=ACCENT, width=line)
    return np.asarray(image)


def _line(tiles: Sequence[tuple[str, Pixels]], width: int, height: int) -> Pixels:
    caption = 20
    canvas = Image.new("RGB", (GAP + len(tiles) * (width + GAP), height + caption + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (text, picture) in enumerate(tiles):
        left = GAP + i * (width + GAP)
        fitted = Image.fromarray(picture)
        scale = min(width / fitted.width, height / fitted.height)
        size = (max(1, round(fitted.width * scale)), max(1, round(fitted.height * scale)))
        fitted = fitted.resize(size, Image.Resampling.LANCZOS)
        canvas.paste(fitted, (left + (width - fitted.width) // 2, (height - fitted.height) // 2))
        draw.text((left, height + 3), text, fill=FAINT, font=ImageFont.load_default(13))
    return np.asarray(canvas)


def _text_band(text: str, width: int, size: int, colour: tuple[int, int, int], below: str = "") -> Pixels:
    height = round(size * 1.7) + (26 if below else 0)
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, size * 0.35), text, fill=colour, font=ImageFont.load_default(size))
    if below:
        draw.text((GAP, round(size * 1.6)), below, fill=FAINT, font=ImageFont.load_default(15))
    return np.asarray(canvas)


def _tinted(crop: np.ndarray, mask: np.ndarray) -> Pixels:  # type: ignore[type-arg]
    """The crop [t, t, 3] in 0..1, darkened, with the mask [s, s] glowing on it."""
    size = crop.shape[0]
    large = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))
    weight = np.clip(large, 0, 1)[..., None]
    return _bytes(crop * (0.45 + 0.1 * weight) + weight * np.array([0.5, 0.42, 0.12]))


def _bytes(picture: np.ndarray) -> Pixels:  # type: ignore[type-arg]
    pixels: Pixels = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return pixels
