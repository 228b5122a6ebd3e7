"""Textured backgrounds, pale and low in contrast, so that every colour is visible on them."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from clip_common.synthetic.scenes import VERSION

_Random = np.random.Generator


def crop_background(name: str, side: int, random: _Random) -> Image.Image:
    """Return a new RGB image of `side` × `side` pixels: a random crop of a background, randomly lit."""
    ground = _make_ground(name, side)
    x, y = (int(offset) for offset in random.integers(side // 2 + 1, size=2))
    light = random.uniform(0.93, 1.03)
    table = np.minimum(255, np.arange(256) * light).astype(np.uint8).tolist()
    return ground.crop((x, y, x + side, y + side)).point(table * 3)


@lru_cache(maxsize=24)
def _make_ground(name: str, side: int) -> Image.Image:
    """Draw a whole background, one and a half times as wide and high as the picture."""
    random = np.random.default_rng(np.random.SeedSequence((VERSION, *name.encode())))
    return _GROUNDS[name](side, random).crop((0, 0, side * 3 // 2, side * 3 // 2))


def _make_grain(side: int, random: _Random, *, cells: int, strength: float, stretch: float = 1.0) -> np.ndarray:
    """Return smooth noise (S, S, 1) of about `cells` bumps across the picture, `stretch` times as wide as high."""
    extent = side * 3 // 2
    coarse = random.normal(size=(round(cells * 1.5), max(2, round(cells * 1.5 / stretch)))).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((extent, extent), Image.Resampling.BICUBIC)
    return strength * np.asarray(smooth)[..., None]


def _add_layers(colour: tuple[int, int, int], *layers: np.ndarray) -> Image.Image:
    """Return an image of one colour plus the layers."""
    return Image.fromarray(np.clip(np.array(colour, dtype=np.float32) + sum(layers), 0, 255).astype(np.uint8))


def _grass(side: int, random: _Random) -> Image.Image:
    ground = _add_layers((168, 198, 142), _make_grain(side, random, cells=9, strength=5))
    draw = ImageDraw.Draw(ground)
    for x, y, lean, tone in random.random((420, 4)):
        foot = (x * side * 1.5, y * side * 1.5)
        tip = (foot[0] + (lean - 0.5) * 0.05 * side, foot[1] - 0.05 * side)
        shade = round(26 * (tone - 0.6))
        draw.line([foot, tip], fill=(160 + shade, 194 + shade, 132 + shade), width=max(1, side // 90))
    return ground


def _sand(side: int, random: _Random) -> Image.Image:
    return _add_layers(
        (232, 216, 180), _make_grain(side, random, cells=6, strength=4), _make_grain(side, random, cells=64, strength=7)
    )


def _bricks(side: int, random: _Random) -> Image.Image:
    ground = Image.new("RGB", (side * 2, side * 2), (222, 214, 206))
    draw = ImageDraw.Draw(ground)
    height, width, gap = side / 7, side / 3.2, side / 60
    for row in range(15):
        for column in range(-1, 8):
            x, y = (column + 0.5 * (row % 2)) * width, row * height
            tone = int(random.integers(-9, 10))
            draw.rectangle((x, y, x + width - gap, y + height - gap), fill=(212 + tone, 178 + tone, 164 + tone))
    return ground


def _wood(side: int, random: _Random) -> Image.Image:
    ground = _add_layers((206, 178, 144), _make_grain(side, random, cells=30, strength=6, stretch=12))
    draw = ImageDraw.Draw(ground)
    for row in range(1, 8):
        y = row * side / 4.5
        draw.line([(0, y), (ground.width, y)], fill=(170, 140, 106), width=max(1, side // 80))
    return ground


def _water(side: int, random: _Random) -> Image.Image:
    ground = _add_layers((172, 206, 222), _make_grain(side, random, cells=8, strength=4, stretch=3))
    draw = ImageDraw.Draw(ground)
    for x, y, length in random.random((46, 3)):
        start, reach, swell = (x * side * 1.5, y * side * 1.5), (0.08 + 0.1 * length) * side, 0.028 * side
        box = (start[0], start[1], start[0] + reach, start[1] + swell)
        draw.arc(box, 180, 360, fill=(212, 232, 240), width=max(1, side // 70))
        draw.arc(
            (box[0] + reach, box[1], box[2] + reach, box[3]), 0, 180, fill=(150, 190, 212), width=max(1, side // 80)
        )
    return ground


def _snow(side: int, random: _Random) -> Image.Image:
    ground = _add_layers((232, 238, 246), _make_grain(side, random, cells=7, strength=5))
    draw = ImageDraw.Draw(ground)
    for x, y, tone in random.random((150, 3)):
        centre, radius = (x * side * 1.5, y * side * 1.5), side / 110
        box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
        draw.ellipse(box, fill=(255, 255, 255) if tone > 0.4 else (206, 216, 232))
    return ground.filter(ImageFilter.GaussianBlur(side / 300))


_GROUNDS: dict[str, Callable[[int, _Random], Image.Image]] = {
    "grass": _grass,
    "sand": _sand,
    "bricks": _bricks,
    "wood": _wood,
    "water": _water,
    "snow": _snow,
}
