"""Silhouettes of the kinds, in unit coordinates, for any resolution.

Each pixel holds one byte for its role: nothing, the body (which takes the thing's colour and texture), a light detail
or a dark one. x runs to the right and y downwards, both from 0 to 1; a margin of 0.05 is left for the outline.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw

NOTHING, BODY, LIGHT, DARK = 0, 1, 2, 3

Point = tuple[float, float]


class Pen:
    """Draws in unit coordinates on a square canvas of `side` pixels."""

    def __init__(self, side: int) -> None:
        self.image = Image.new("L", (side, side), NOTHING)
        self._draw = ImageDraw.Draw(self.image)
        self._side = side

    def _to_pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._side, y * self._side) for x, y in points]

    def polygon(self, points: Sequence[Point], *, role: int = BODY) -> None:
        self._draw.polygon(self._to_pixels(points), fill=role)

    def ellipse(self, corner: Point, opposite: Point, *, role: int = BODY) -> None:
        self._draw.ellipse(self._to_pixels([corner, opposite]), fill=role)

    def box(self, corner: Point, opposite: Point, *, role: int = BODY, radius: float = 0.0) -> None:
        self._draw.rounded_rectangle(self._to_pixels([corner, opposite]), radius=radius * self._side, fill=role)

    def pie(self, corner: Point, opposite: Point, *, start: float, end: float, role: int = BODY) -> None:
        """Draw a sector from `start` to `end` degrees, clockwise from three o'clock."""
        self._draw.pieslice(self._to_pixels([corner, opposite]), start, end, fill=role)

    def arc(self, corner: Point, opposite: Point, *, start: float, end: float, width: float, role: int = BODY) -> None:
        self._draw.arc(self._to_pixels([corner, opposite]), start, end, fill=role, width=round(width * self._side))

    def line(self, points: Sequence[Point], *, width: float, role: int = DARK) -> None:
        self._draw.line(self._to_pixels(points), fill=role, width=max(1, round(width * self._side)), joint="curve")


def _mug(pen: Pen) -> None:
    pen.arc((0.48, 0.32), (0.94, 0.78), start=-110, end=110, width=0.1)
    pen.box((0.08, 0.14), (0.68, 0.92), radius=0.1)
    pen.ellipse((0.08, 0.08), (0.68, 0.26))
    pen.ellipse((0.14, 0.11), (0.62, 0.23), role=DARK)


def _star(pen: Pen) -> None:
    corners = [(0.48 if i % 2 == 0 else 0.21, math.radians(36 * i - 90)) for i in range(10)]
    pen.polygon([(0.5 + r * math.cos(a), 0.53 + r * math.sin(a)) for r, a in corners])


def _fish(pen: Pen) -> None:
    pen.polygon([(0.62, 0.5), (0.95, 0.2), (0.88, 0.5), (0.95, 0.8)])
    pen.polygon([(0.28, 0.3), (0.46, 0.1), (0.62, 0.32)])
    pen.ellipse((0.05, 0.24), (0.76, 0.78))
    pen.ellipse((0.14, 0.37), (0.3, 0.53), role=LIGHT)
    pen.ellipse((0.18, 0.41), (0.26, 0.49), role=DARK)


def _house(pen: Pen) -> None:
    pen.box((0.64, 0.12), (0.76, 0.4), role=DARK)
    pen.box((0.14, 0.42), (0.86, 0.94))
    pen.polygon([(0.04, 0.48), (0.5, 0.07), (0.96, 0.48)])
    pen.line([(0.04, 0.48), (0.96, 0.48)], width=0.04)
    pen.box((0.56, 0.6), (0.74, 0.94), role=DARK)
    pen.box((0.24, 0.58), (0.44, 0.76), role=LIGHT)
    pen.line([(0.34, 0.58), (0.34, 0.76)], width=0.03)


def _tree(pen: Pen) -> None:
    pen.box((0.42, 0.6), (0.58, 0.95), role=DARK)
    pen.ellipse((0.08, 0.3), (0.56, 0.74))
    pen.ellipse((0.44, 0.3), (0.92, 0.74))
    pen.ellipse((0.22, 0.06), (0.78, 0.58))


def _car(pen: Pen) -> None:
    pen.polygon([(0.2, 0.5), (0.32, 0.24), (0.66, 0.24), (0.82, 0.5)])
    pen.box((0.05, 0.44), (0.95, 0.72), radius=0.1)
    pen.polygon([(0.28, 0.47), (0.36, 0.31), (0.47, 0.31), (0.47, 0.47)], role=LIGHT)
    pen.polygon([(0.53, 0.47), (0.53, 0.31), (0.63, 0.31), (0.73, 0.47)], role=LIGHT)
    for x in (0.27, 0.73):
        pen.ellipse((x - 0.13, 0.58), (x + 0.13, 0.84), role=DARK)
        pen.ellipse((x - 0.05, 0.66), (x + 0.05, 0.76), role=LIGHT)


def _leaf(pen: Pen) -> None:
    tip, stem, bend = (0.9, 0.08), (0.2, 0.8), 0.3
    steps = [i / 24 for i in range(25)]
    axis = [(stem[0] + t * (tip[0] - stem[0]), stem[1] + t * (tip[1] - stem[1])) for t in steps]
    bulge = [bend * math.sin(math.pi * t**0.8) for t in steps]
    left = [(x - 0.72 * b, y - 0.7 * b) for (x, y), b in zip(axis, bulge, strict=True)]
    right = [(x + 0.72 * b, y + 0.7 * b) for (x, y), b in zip(axis, bulge, strict=True)]
    pen.polygon(left + right[::-1])
    pen.line([(0.07, 0.93), stem, (0.74, 0.24)], width=0.05)
    for t in (0.3, 0.5):
        x, y = stem[0] + t * 0.7, stem[1] - t * 0.72
        pen.line([(x - 0.02, y - 0.17), (x, y), (x + 0.17, y + 0.02)], width=0.03)


def _key(pen: Pen) -> None:
    pen.box((0.4, 0.43), (0.95, 0.57))
    pen.box((0.68, 0.5), (0.77, 0.76))
    pen.box((0.86, 0.5), (0.95, 0.72))
    pen.ellipse((0.05, 0.24), (0.57, 0.76))
    pen.ellipse((0.2, 0.39), (0.42, 0.61), role=NOTHING)


def _bottle(pen: Pen) -> None:
    pen.box((0.4, 0.12), (0.6, 0.42))
    pen.polygon([(0.4, 0.3), (0.6, 0.3), (0.74, 0.48), (0.26, 0.48)])
    pen.box((0.26, 0.44), (0.74, 0.95), radius=0.07)
    pen.box((0.37, 0.05), (0.63, 0.17), role=DARK, radius=0.02)


def _umbrella(pen: Pen) -> None:
    pen.line([(0.5, 0.04), (0.5, 0.82)], width=0.05)
    pen.arc((0.32, 0.72), (0.525, 0.95), start=0, end=180, width=0.05, role=DARK)
    pen.pie((0.04, 0.1), (0.96, 0.98), start=180, end=360)
    for x in (0.04, 0.347, 0.653):
        pen.ellipse((x, 0.48), (x + 0.307, 0.6), role=NOTHING)
    pen.line([(0.5, 0.5), (0.5, 0.82)], width=0.05)
    for x in (0.347, 0.653):
        pen.line([(0.5, 0.1), (x, 0.54)], width=0.025)


def _boat(pen: Pen) -> None:
    pen.polygon([(0.56, 0.07), (0.56, 0.58), (0.93, 0.58)])
    pen.polygon([(0.44, 0.18), (0.44, 0.58), (0.14, 0.58)], role=LIGHT)
    pen.line([(0.5, 0.05), (0.5, 0.7)], width=0.06)
    pen.polygon([(0.04, 0.66), (0.96, 0.66), (0.8, 0.93), (0.2, 0.93)])


def _lamp(pen: Pen) -> None:
    pen.box((0.46, 0.5), (0.54, 0.88), role=DARK)
    pen.polygon([(0.32, 0.07), (0.68, 0.07), (0.9, 0.56), (0.1, 0.56)])
    pen.ellipse((0.26, 0.8), (0.74, 0.95), role=DARK)


def _hat(pen: Pen) -> None:
    pen.ellipse((0.04, 0.6), (0.96, 0.88))
    pen.polygon([(0.27, 0.22), (0.73, 0.22), (0.8, 0.74), (0.2, 0.74)])
    pen.ellipse((0.27, 0.12), (0.73, 0.34))
    pen.polygon([(0.215, 0.6), (0.785, 0.6), (0.8, 0.74), (0.2, 0.74)], role=DARK)


def _bell(pen: Pen) -> None:
    pen.ellipse((0.4, 0.78), (0.6, 0.96), role=DARK)
    pen.ellipse((0.42, 0.04), (0.58, 0.2), role=DARK)
    pen.pie((0.24, 0.12), (0.76, 0.72), start=180, end=360)
    pen.polygon([(0.24, 0.42), (0.76, 0.42), (0.8, 0.66), (0.94, 0.84), (0.06, 0.84), (0.2, 0.66)])
    pen.line([(0.17, 0.72), (0.83, 0.72)], width=0.04)


def _butterfly(pen: Pen) -> None:
    for mirror in (lambda x: x, lambda x: 1 - x):
        low, high = sorted((mirror(0.05), mirror(0.5)))
        pen.ellipse((low, 0.12), (high, 0.58))
        low, high = sorted((mirror(0.14), mirror(0.5)))
        pen.ellipse((low, 0.5), (high, 0.9))
        pen.line([(0.5, 0.26), (mirror(0.36), 0.05)], width=0.035)
    pen.ellipse((0.44, 0.2), (0.56, 0.86), role=DARK)


def _mushroom(pen: Pen) -> None:
    pen.box((0.36, 0.5), (0.64, 0.94), role=LIGHT, radius=0.08)
    pen.pie((0.05, 0.07), (0.95, 1.05), start=180, end=360)


_DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "mug": _mug, "star": _star, "fish": _fish, "house": _house, "tree": _tree, "car": _car, "leaf": _leaf, "key": _key,
    "bottle": _bottle, "umbrella": _umbrella, "boat": _boat, "lamp": _lamp, "hat": _hat, "bell": _bell,
    "butterfly": _butterfly, "mushroom": _mushroom,
}  # fmt: skip


@lru_cache(maxsize=256)
def draw_silhouette(kind: str, side: int) -> Image.Image:
    """Draw a kind as an "L" image of `side` × `side` pixels: NOTHING, BODY, LIGHT or DARK. Cached: do not modify it."""
    pen = Pen(side)
    _DRAWINGS[kind](pen)
    return pen.image
