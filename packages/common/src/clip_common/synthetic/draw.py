"""Pictures of scenes, drawn with PIL at two or three times the size and scaled down, so that 64 pixels are enough."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from clip_common.synthetic.backgrounds import crop_background
from clip_common.synthetic.scenes import SIDE, Scene, Thing, centre, generator
from clip_common.synthetic.shapes import BODY, DARK, LIGHT, draw_silhouette

Rgb = tuple[int, int, int]

PALETTE: dict[str, Rgb] = {
    "red": (218, 40, 44),
    "orange": (245, 135, 25),
    "yellow": (252, 214, 40),
    "green": (38, 158, 62),
    "blue": (36, 92, 214),
    "purple": (132, 58, 184),
    "pink": (250, 132, 186),
    "black": (48, 48, 54),
}
"""RGB of each colour name; it fills most of the thing."""

# Colour of stripes, dots and checks on each colour: light on a dark one, dark on a light one.
_INK: dict[str, Rgb] = {
    "red": (255, 226, 214),
    "orange": (255, 240, 214),
    "yellow": (206, 128, 12),
    "green": (222, 250, 214),
    "blue": (206, 226, 255),
    "purple": (236, 212, 255),
    "pink": (190, 40, 112),
    "black": (226, 226, 230),
}
_LIGHT_DETAIL: Rgb = (252, 248, 238)
SHADOW_COLOUR: Rgb = (40, 34, 28)
SHADOW = [value * 70 // 255 for value in range(256)]
"""Opacity of the shadow for each value of alpha."""


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draw a scene as an RGB image of `size` × `size` pixels, always the same for the same scene and size.

    Raises:
        ValueError: `size` is below 16, too small to recognise anything.
    """
    if size < 16:
        raise ValueError(f"a scene needs at least 16 pixels a side: got size={size}")
    side = size * (3 if size <= 128 else 2)
    random = generator("render", seed=scene.seed, index=scene.index)
    canvas = crop_background(scene.background, side, random)
    for thing in sorted(scene.things, key=lambda thing: -SIDE[thing.size]):  # small things on top
        _paste_thing(canvas, thing, random)
    return canvas.resize((size, size), Image.Resampling.BOX)


def _paste_thing(canvas: Image.Image, thing: Thing, random: np.random.Generator) -> None:
    side = canvas.width
    extent = round(SIDE[thing.size] * side * random.uniform(0.95, 1.05))
    corners = (round((middle + random.uniform(-0.02, 0.02)) * side - extent / 2) for middle in centre(thing.place))
    x, y = (min(max(0, corner), side - extent) for corner in corners)
    # multiples of 32 keep the number of cached masks small and the resolution close to the size shown
    picture, outline = draw_thing(thing, resolution=-(-extent // 32) * 32, brightness=random.uniform(0.94, 1.04))
    pose = compute_affine(picture.width, extent, angle=random.uniform(-0.16, 0.16), mirrored=random.random() < 0.5)
    picture = picture.transform((extent, extent), Image.Transform.AFFINE, pose, Image.Resampling.BILINEAR)
    outline = outline.transform((extent, extent), Image.Transform.AFFINE, pose, Image.Resampling.BILINEAR)
    shift = max(1, round(0.03 * extent))
    canvas.paste(SHADOW_COLOUR, (x + shift, y + shift), outline.point(SHADOW))
    canvas.paste(picture, (x, y), outline)


def compute_affine(side: int, extent: int, *, angle: float, mirrored: bool, margin: float = 0.0) -> tuple[float, ...]:
    """Return PIL's affine coefficients that scale a square, turn it by `angle` radians, then mirror it.

    Args:
        side: Pixels of the source square.
        extent: Pixels of the result.
        angle: Radians.
        mirrored: Swap left and right.
        margin: The source fills 1 / (1 + margin) of the result's width, so that turning cuts off no corner.

    Returns:
        (a, b, c, d, e, f): pixel (x, y) of the result is taken from (ax + by + c, dx + ey + f) of the source.
    """
    cosine, sine = (side / extent * (1 + margin) * part for part in (math.cos(angle), math.sin(angle)))
    sign, half = (-1 if mirrored else 1), extent / 2
    return (
        *(sign * cosine, sign * sine, side / 2 - sign * half * (cosine + sine)),
        *(-sine, cosine, side / 2 + half * (sine - cosine)),
    )


def draw_thing(thing: Thing, *, resolution: int, brightness: float) -> tuple[Image.Image, Image.Image]:
    """Draw a thing by itself: RGB with outline, textured body and details, and the mask of the pixels it covers."""
    outline, body, light, dark = _make_masks(thing.kind, resolution)
    deep = scale_colour(PALETTE[thing.colour], 0.38)
    picture = Image.new("RGB", (resolution, resolution), deep)
    filled = Image.new("RGB", (resolution, resolution), scale_colour(PALETTE[thing.colour], brightness))
    if thing.texture != "plain":
        filled.paste(scale_colour(_INK[thing.colour], brightness), None, _draw_pattern(thing.texture, resolution))
    picture.paste(filled, None, body)
    picture.paste(_LIGHT_DETAIL, None, light)
    picture.paste(deep, None, dark)
    return picture, outline


def scale_colour(colour: Rgb, factor: float) -> Rgb:
    """Return the colour with every channel multiplied by `factor`, at most 255."""
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


@lru_cache(maxsize=256)
def _make_masks(kind: str, resolution: int) -> tuple[Image.Image, Image.Image, Image.Image, Image.Image]:
    """Return four "L" masks: the outline (everything painted, and a rim), the body, light details and dark details."""
    painted = draw_silhouette(kind, resolution)
    whole = painted.point(lambda role: 255 if role else 0)
    outline = whole.filter(ImageFilter.MaxFilter(2 * round(0.022 * resolution) + 1))
    body, light, dark = (
        painted.point(lambda role, wanted=wanted: 255 if role == wanted else 0) for wanted in (BODY, LIGHT, DARK)
    )
    return outline, body, light, dark


@lru_cache(maxsize=64)
def _draw_pattern(texture: str, resolution: int) -> Image.Image:
    """Draw the "L" mask of a texture's ink."""
    mask = Image.new("L", (resolution, resolution), 0)
    draw = ImageDraw.Draw(mask)
    if texture == "striped":
        period, width = 0.29 * resolution, 0.12 * resolution
        for i in range(-5, 5):
            start = i * period
            draw.polygon(
                [
                    (start, 0),
                    (start + width, 0),
                    (start + width + resolution, resolution),
                    (start + resolution, resolution),
                ],
                255,
            )
    elif texture == "dotted":
        period, radius = 0.25 * resolution, 0.074 * resolution
        for row in range(6):
            for column in range(-1, 6):
                x, y = (column + 0.5 * (row % 2)) * period + 0.06 * resolution, row * period * 0.87
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    else:
        cell = resolution / 5.5
        for row in range(6):
            for column in range(row % 2, 6, 2):
                draw.rectangle((column * cell, row * cell, (column + 1) * cell - 1, (row + 1) * cell - 1), 255)
    return mask
