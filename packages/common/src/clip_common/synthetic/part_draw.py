"""Pictures of parts, with exact masks of their defects.

A part is drawn in a square of its own and damaged there; picture and mask are then turned and placed together, so that
the mask covers exactly the pixels that the damage changed. Through a hole or a missing part the background is visible.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from clip_common.synthetic.backgrounds import crop_background
from clip_common.synthetic.defects import Box, Shape, sample_defect
from clip_common.synthetic.draw import PALETTE, SHADOW, SHADOW_COLOUR, Rgb, compute_affine, draw_thing, scale_colour
from clip_common.synthetic.parts import Part
from clip_common.synthetic.scenes import Thing, generator
from clip_common.synthetic.shapes import BODY, draw_silhouette

_PLATE: Rgb = (246, 240, 226)
_INK: Rgb = (38, 38, 44)
_BARS = 5
_MARGIN = 0.14
_COVERED = 96  # of 255: a pixel counts as defective if at least three eighths of it are


@dataclass(frozen=True, slots=True)
class _Pose:
    """Position and size of the part's square as fractions of the picture's side, angle in radians, and its print."""

    extent: float
    x: float
    y: float
    angle: float
    mirrored: bool
    brightness: float
    bars: tuple[float, ...]


def render_part(part: Part, size: int = 112) -> tuple[Image.Image, Image.Image]:
    """Draw a part: its RGB picture and the "L" mask of its defect (0 or 255), both `size` × `size` pixels.

    The result is always the same for the same part and size. The mask of a flawless part is empty.

    Raises:
        ValueError: `size` is below 32, too small to see defects.
    """
    if size < 32:
        raise ValueError(f"a part needs at least 32 pixels a side: got size={size}")
    side = size * 2
    random = generator("part picture", seed=part.seed, index=part.index)
    canvas = crop_background(part.background, side, random)
    pose = _sample_pose(random)
    extent = round(pose.extent * side)
    resolution = -(-extent // 32) * 32
    label = _find_label(part.kind)

    thing = Thing(kind=part.kind, colour=part.colour, texture=part.texture, size="large", place="centre")
    picture, outline = draw_thing(thing, resolution=resolution, brightness=pose.brightness)
    _draw_label(picture, label, pose.bars)
    damage, kept = Image.new("L", (resolution, resolution), 0), outline
    if part.defect is not None:
        random = generator("defect", seed=part.seed, index=part.index)
        shape = sample_defect(part.defect, outline=outline, label=label, random=random)
        damage = ImageChops.darker(shape.draw_mask(resolution), outline)
        damage, kept = _paint_defect(picture, outline, damage, part, shape, random)

    where = compute_affine(resolution, extent, angle=pose.angle, mirrored=pose.mirrored, margin=_MARGIN)
    picture, kept, damage = (
        image.transform((extent, extent), Image.Transform.AFFINE, where, Image.Resampling.BILINEAR)
        for image in (picture, kept, damage)
    )
    x, y = (round(corner * (side - extent)) for corner in (pose.x, pose.y))
    shift = max(1, round(0.02 * extent))
    canvas.paste(SHADOW_COLOUR, (x + shift, y + shift), kept.point(SHADOW))
    canvas.paste(picture, (x, y), kept)
    mask = Image.new("L", (side, side), 0)
    mask.paste(damage, (x, y))
    shown = mask.resize((size, size), Image.Resampling.BOX).point(lambda value: 255 if value >= _COVERED else 0)
    return canvas.resize((size, size), Image.Resampling.BOX), shown


def _sample_pose(random: np.random.Generator) -> _Pose:
    return _Pose(
        extent=random.uniform(0.8, 1.0),
        x=random.random(),
        y=random.random(),
        angle=random.uniform(-0.3, 0.3),
        mirrored=random.random() < 0.5,
        brightness=random.uniform(0.88, 1.06),
        bars=tuple(random.uniform(0.35, 0.8, size=_BARS)),
    )


@lru_cache(maxsize=32)
def _find_label(kind: str) -> Box:
    """Find the place for a label on the body of a kind: the largest of five sizes that fits, nearest to its middle."""
    side = 96
    body = np.asarray(draw_silhouette(kind, side)) == BODY
    count = np.pad(body.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    middle = np.argwhere(body).mean(0)
    for width, height in ((0.34, 0.17), (0.28, 0.14), (0.24, 0.12), (0.2, 0.1), (0.16, 0.08)):
        w, h = round(width * side), round(height * side)
        inside = count[h:, w:] - count[:-h, w:] - count[h:, :-w] + count[:-h, :-w]
        fits = np.argwhere(inside == w * h)
        if len(fits):
            top, left = fits[np.abs(fits + np.array([h, w]) / 2 - middle).sum(1).argmin()]
            return left / side, top / side, (left + w) / side, (top + h) / side
    raise AssertionError(f"no print fits on a {kind}")


def _draw_label(picture: Image.Image, label: Box, bars: tuple[float, ...]) -> None:
    """Draw the printed label of a flawless part: a plate with bars of different heights."""
    draw = ImageDraw.Draw(picture)
    left, top, right, bottom = (edge * picture.width for edge in label)
    draw.rectangle((left, top, right, bottom), fill=_PLATE)
    step = (right - left) / _BARS
    for number, height in enumerate(bars):
        x, foot = left + (number + 0.3) * step, bottom - 0.1 * (bottom - top)
        draw.rectangle((x, foot - height * (bottom - top), x + 0.45 * step, foot), fill=_INK)


def _paint_defect(
    picture: Image.Image,
    outline: Image.Image,
    damage: Image.Image,
    part: Part,
    shape: Shape,
    random: np.random.Generator,
) -> tuple[Image.Image, Image.Image]:
    """Paint the defect on `picture`, in place; return the mask of changed pixels, and the outline that remains."""
    black = part.colour == "black"
    if part.defect in ("hole", "missing part"):
        rim = damage.filter(ImageFilter.MaxFilter(2 * round(0.012 * picture.width) + 1))
        picture.paste(scale_colour(PALETTE[part.colour], 0.3), None, rim)
        return ImageChops.darker(rim, outline), ImageChops.subtract(outline, damage)
    if part.defect == "stain":
        blot = (176, 150, 96) if black else ((92, 68, 36), (66, 84, 48))[int(random.integers(2))]
        picture.paste(blot, None, damage.point(lambda value: value * 210 // 255))
    elif part.defect == "scratch":
        deep = sum(PALETTE[part.colour]) < 330
        picture.paste((240, 240, 242) if deep else (70, 66, 66), None, damage)
    elif part.defect == "crack":
        picture.paste((170, 164, 158) if black else (24, 20, 20), None, damage)
    else:
        picture.paste(_draw_smear(shape, picture.width, random), None, damage)
    return damage, outline


def _draw_smear(shape: Shape, side: int, random: np.random.Generator) -> Image.Image:
    """Draw smeared ink with three bare streaks."""
    image = Image.new("RGB", (side, side), _INK)
    draw = ImageDraw.Draw(image)
    (_, top), _, (_, bottom), _ = shape.polygons[0]
    for height in random.uniform(top, bottom, size=3):
        draw.line([(0, height * side), (side, (height + 0.1) * side)], fill=(150, 146, 140), width=max(1, side // 60))
    return image
