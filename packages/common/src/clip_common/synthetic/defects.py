"""Random shapes of defects: polygons and strokes in the unit square in which the part is drawn.

A defect is sampled again, a little smaller each time, until it covers the required share of the square and enough of
it is on the part. This is decided on a canvas of fixed size, so that the defect is the same at every picture size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in the unit square."""
Mask = NDArray[np.bool_]

SHARE = (0.008, 0.048)
"""Smallest and largest share of the part's square that a defect covers without its rim: 0.2 to 5 % of the picture."""

_CANVAS = 160


@dataclass(frozen=True, slots=True)
class Shape:
    """Polygons and strokes of one defect."""

    polygons: tuple[tuple[Point, ...], ...] = ()
    strokes: tuple[tuple[tuple[Point, ...], float], ...] = ()

    def draw_mask(self, side: int) -> Image.Image:
        """Draw an "L" image of `side` × `side` pixels, 255 on the defect."""
        image = Image.new("L", (side, side), 0)
        draw = ImageDraw.Draw(image)
        for polygon in self.polygons:
            draw.polygon([(x * side, y * side) for x, y in polygon], fill=255)
        for points, width in self.strokes:
            line = [(x * side, y * side) for x, y in points]
            draw.line(line, fill=255, width=max(1, round(width * side)), joint="curve")
        return image


def sample_defect(defect: str, *, outline: Image.Image, label: Box, random: np.random.Generator) -> Shape:
    """Sample the shape of a defect on a part.

    Args:
        defect: One of `parts.DEFECTS`.
        outline: Square "L" image of any size: the pixels that the part covers.
        label: Box of the printed label.
        random: Source of everything else.
    """
    part = np.asarray(outline.resize((_CANVAS, _CANVAS), Image.Resampling.BOX)) > 127
    inside_least, inside_most = (0.3, 0.75) if defect == "missing part" else (0.93, 1.0)
    ys, xs = np.nonzero(_find_rim(part) if defect == "missing part" else part)
    size = 1.0
    while True:
        pick = int(random.integers(len(xs)))
        start = ((xs[pick] + 0.5) / _CANVAS, (ys[pick] + 0.5) / _CANVAS)
        shape = _SHAPES[defect](start, label, size, random)
        covered = np.asarray(shape.draw_mask(_CANVAS)) > 127
        on_part = (covered & part).mean()
        if SHARE[0] <= on_part <= SHARE[1] and inside_least <= on_part / covered.mean() <= inside_most:
            return shape
        size = max(0.55, size * 0.98)


def _find_rim(part: Mask) -> Mask:
    """Return the part's pixels that touch its outside, except at the edge of the square."""
    inner = part[1:-1, 1:-1] & part[:-2, 1:-1] & part[2:, 1:-1] & part[1:-1, :-2] & part[1:-1, 2:]
    rim = part.copy()
    rim[1:-1, 1:-1] &= ~inner
    return rim


def _scratch(start: Point, label: Box, size: float, random: np.random.Generator) -> Shape:
    """Sample one to three long, thin, nearly parallel strokes."""
    angle, bend = random.uniform(0, math.pi), random.uniform(-0.25, 0.25)
    strokes = []
    for number in range(int(random.integers(1, 4))):
        length = size * random.uniform(0.3, 0.5) * (1 if number == 0 else 0.7)
        shift = number * 0.055
        x, y = start[0] - shift * math.sin(angle), start[1] + shift * math.cos(angle)
        points = [
            (x + t * length * math.cos(angle + bend * t), y + t * length * math.sin(angle + bend * t))
            for t in (-0.5, -0.25, 0.0, 0.25, 0.5)
        ]
        strokes.append((tuple(points), random.uniform(0.02, 0.028)))
    return Shape(strokes=tuple(strokes))


def _crack(start: Point, label: Box, size: float, random: np.random.Generator) -> Shape:
    """Sample a jagged line with one or two branches, thinner towards its end."""
    angle = random.uniform(0, 2 * math.pi)
    trunk = _jagged_line(start, angle, size * random.uniform(0.35, 0.5), random)
    strokes = [(trunk[:4], 0.036), (trunk[3:], 0.026)]
    for _ in range(int(random.integers(1, 3))):
        fork = trunk[int(random.integers(2, 6))]
        turn = random.choice((-1, 1)) * random.uniform(0.6, 1.1)
        strokes.append((_jagged_line(fork, angle + turn, size * random.uniform(0.12, 0.2), random), 0.024))
    return Shape(strokes=tuple(strokes))


def _jagged_line(start: Point, angle: float, length: float, random: np.random.Generator) -> tuple[Point, ...]:
    x, y = start
    points = [(x, y)]
    for number in range(7):
        turned = angle + (0.75 if number % 2 else -0.75) * random.uniform(0.3, 1.0)
        x, y = x + length / 7 * math.cos(turned), y + length / 7 * math.sin(turned)
        points.append((x, y))
    return tuple(points)


def _hole(start: Point, label: Box, size: float, random: np.random.Generator) -> Shape:
    return Shape(polygons=(_blob(start, size * random.uniform(0.065, 0.115), 0.06, random),))


def _stain(start: Point, label: Box, size: float, random: np.random.Generator) -> Shape:
    """Sample a large uneven blot and a drop beside it."""
    radius, angle = size * random.uniform(0.085, 0.125), random.uniform(0, 2 * math.pi)
    beside = (start[0] + 1.7 * radius * math.cos(angle), start[1] + 1.7 * radius * math.sin(angle))
    return Shape(polygons=(_blob(start, radius, 0.25, random), _blob(beside, 0.35 * radius, 0.15, random)))


def _missing(start: Point, label: Box, size: float, random: np.random.Generator) -> Shape:
    return Shape(polygons=(_blob(start, size * random.uniform(0.13, 0.19), 0.3, random),))


def _misprint(start: Point, label: Box, size: float, random: np.random.Generator) -> Shape:
    """Sample a smear over one half of the label, dragged past its edge."""
    left, top, right, bottom = label
    width, height = right - left, bottom - top
    near = left + width * random.uniform(0.3, 0.5)
    far = right + width * random.uniform(0.0, 0.15) * size
    drop = height * random.uniform(-0.4, 0.4) * size
    over = height * random.uniform(0.0, 0.25)
    return Shape(
        polygons=(((near, top - over), (far, top - over + drop), (far, bottom + over + drop), (near, bottom + over)),)
    )


def _blob(middle: Point, radius: float, roughness: float, random: np.random.Generator) -> tuple[Point, ...]:
    """Sample a closed curve around `middle` whose radius varies smoothly by `roughness`."""
    phases, weights = random.uniform(0, 2 * math.pi, size=4), random.uniform(-1, 1, size=4)
    points = []
    for step in range(36):
        angle = step * math.pi / 18
        wave = sum(w * math.sin((k + 1) * angle + p) for k, (w, p) in enumerate(zip(weights, phases, strict=True)))
        r = radius * (1 + roughness * wave / 2)
        points.append((middle[0] + r * math.cos(angle), middle[1] + r * math.sin(angle)))
    return tuple(points)


_SHAPES: dict[str, Callable[[Point, Box, float, np.random.Generator], Shape]] = {
    "scratch": _scratch,
    "crack": _crack,
    "hole": _hole,
    "stain": _stain,
    "missing part": _missing,
    "misprint": _misprint,
}
