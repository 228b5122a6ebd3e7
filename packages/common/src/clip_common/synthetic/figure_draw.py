"""Pictures of walking figures, from a camera that follows them along a wall, and the joints as the camera sees them.

The camera looks from the side and a little from above, without perspective, so that lengths do not depend on position.
Everything is drawn at three times the size and scaled down. T frames, J = 17 joints, S = `size` pixels a side.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from clip_common.regions import JOINTS
from clip_common.synthetic.backgrounds import crop_background
from clip_common.synthetic.draw import PALETTE, SHADOW_COLOUR, Rgb, scale_colour
from clip_common.synthetic.figure_gait import SIDES, body_points, speed
from clip_common.synthetic.figures import Clip

SKIN: dict[str, Rgb] = {
    "pale": (250, 220, 200),
    "fair": (238, 196, 166),
    "tan": (212, 160, 122),
    "brown": (158, 106, 74),
    "dark": (104, 68, 50),
}
HAIR: dict[str, Rgb] = {
    "blond": (224, 186, 106),
    "red": (172, 82, 42),
    "brown": (96, 62, 40),
    "black": (40, 34, 34),
    "grey": (168, 168, 172),
}
CLOTH: dict[str, Rgb] = {
    "navy": (44, 58, 104),
    "grey": (112, 116, 124),
    "brown": (120, 88, 62),
    "olive": (100, 106, 62),
    "black": (52, 52, 58),
}

Floats = NDArray[np.float64]
Point = tuple[float, float]

_OVERSAMPLING = 3
_DEPTH = 0.03  # metres by which the camera raises the far side of the body
_SEEN, _FAR, _HIDDEN = 0.95, 0.8, 0.35  # confidence of a joint: on the near side, on the far side, behind the body
# forward and up from the centre of the head, in its radii
_FACE = {"nose": (1.08, 0.0), "eye": (0.78, 0.18), "ear": (-0.08, 0.05)}


def frame_times(*, fps: int, seconds: float) -> Floats:
    """Return the times of the T = round(fps·seconds) frames, in seconds.

    Raises:
        ValueError: T is 0.
    """
    if fps < 1 or round(fps * seconds) < 1:
        raise ValueError(f"a clip needs at least one frame: got fps={fps}, seconds={seconds}")
    return np.arange(round(fps * seconds)) / fps


def _pixels_per_metre(clip: Clip, size: int) -> float:
    return size * clip.zoom / 1.75


def _hip_columns(clip: Clip, size: int, moments: Floats) -> Floats:
    """Return x of the hips in pixels, (T,): the camera follows almost as fast as they move."""
    return np.asarray(size * (0.5 + clip.drift * (2 * moments / max(moments[-1], 1e-6) - 1)))


def _project(clip: Clip, size: int, moments: Floats) -> dict[str, Floats]:
    """Return every point of body and face as the camera sees it: (T, 2) pixels each."""
    points = body_points(clip, moments)
    for name, offset in _FACE.items():
        face = points["head"] + clip.subject.build.head * np.array(offset)
        points |= {"nose": face} if name == "nose" else {f"{side}_{name}": face for side in SIDES}
    metre, direction = _pixels_per_metre(clip, size), 1 if clip.facing == "right" else -1
    seen = {}
    for name, point in points.items():
        depth = 0.0 if name.startswith(clip.near) else 1.0 if name.startswith(SIDES) else 0.5
        x = _hip_columns(clip, size, moments) + direction * metre * point[:, 0]
        seen[name] = np.stack([x, clip.ground * size - metre * (point[:, 1] + depth * _DEPTH)], axis=-1)
    return seen


def keypoints(clip: Clip, *, size: int, fps: int = 24, seconds: float = 1.0) -> NDArray[np.float32]:
    """Return the joints of a clip as its camera sees them.

    Returns:
        (T, J, 3) float32: x and y in pixels, and confidence. Confidence is 0.95 on the near side, 0.8 on the far side,
        and 0.35 for joints behind the trunk, the near arm or the near leg, and for the eye and ear on the far side.

    Raises:
        ValueError: The clip is shorter than a frame.
    """
    near, girth = clip.near, clip.subject.build.girth
    seen = _project(clip, size, frame_times(fps=fps, seconds=seconds))
    in_front = (("hip", "shoulder", 0.11), ("hip", "knee", 0.07), ("knee", "ankle", 0.05), ("shoulder", "elbow", 0.04))
    found = np.empty((len(seen["nose"]), len(JOINTS), 3), dtype=np.float32)
    for column, name in enumerate(JOINTS):
        gaps = [
            _distance_to_segment(seen[name], seen[f"{near}_{start}"], seen[f"{near}_{end}"])
            - width * girth * _pixels_per_metre(clip, size)
            for start, end, width in in_front
        ]
        hidden = (np.min(gaps, axis=0) < 0) | name.endswith(("eye", "ear"))
        far = np.where(hidden, _HIDDEN, _FAR)
        found[:, column, :2] = seen[name]
        found[:, column, 2] = far if name.startswith(SIDES) and not name.startswith(near) else _SEEN
    return found


def _distance_to_segment(point: Floats, start: Floats, end: Floats) -> Floats:
    """Return the distance of each point from its segment, (T,)."""
    line = end - start
    along = np.clip(((point - start) * line).sum(axis=-1) / (line**2).sum(axis=-1), 0, 1)
    return np.asarray(np.linalg.norm(point - start - along[:, None] * line, axis=-1))


def render_walk(clip: Clip, *, size: int, fps: int = 24, seconds: float = 1.0) -> NDArray[np.uint8]:
    """Draw the frames of a clip: (T, S, S, 3) uint8 RGB, always the same for the same arguments.

    Raises:
        ValueError: `size` is below 32, too small to tell limbs apart, or the clip is shorter than a frame.
    """
    moments = frame_times(fps=fps, seconds=seconds)
    if size < 32:
        raise ValueError(f"a walking figure needs at least 32 pixels a side: got size={size}")
    side = size * _OVERSAMPLING
    seen, scenery, hips = _project(clip, side, moments), _draw_scenery(clip, side), _hip_columns(clip, side, moments)
    direction = 1 if clip.facing == "right" else -1
    floor = hips - direction * _pixels_per_metre(clip, side) * speed(clip.subject.build) * moments
    frames = np.empty((len(moments), size, size, 3), dtype=np.uint8)
    for number, start in enumerate(floor):
        columns = (np.arange(side) - round(start)) % scenery.shape[1]
        canvas = Image.fromarray(np.ascontiguousarray(scenery[:, columns]))
        _draw_shadow(canvas, clip, hips[number])
        _Figure(canvas, clip, {name: (float(at[number, 0]), float(at[number, 1])) for name, at in seen.items()}).draw()
        frames[number] = np.asarray(canvas.resize((size, size), Image.Resampling.BOX))
    return frames


def _draw_scenery(clip: Clip, side: int) -> NDArray[np.uint8]:
    """Draw wall and floor, (side, 2·side, 3): the right half mirrors the left, so that copies join without a seam."""
    random = clip.generator("walk scenery")
    picture = np.asarray(crop_background(clip.wall, side, random)).copy()
    edge = round(clip.ground * side - 0.12 * _pixels_per_metre(clip, side))
    floor = crop_background(clip.floor, side, random).resize((side, side // 2))  # foreshortened
    picture[edge:] = np.asarray(floor)[: side - edge] * 0.86
    picture[edge - max(1, side // 80) : edge] = np.asarray(picture[edge] * 0.72, dtype=np.uint8)
    return np.concatenate([picture, picture[:, ::-1]], axis=1)


def _draw_shadow(canvas: Image.Image, clip: Clip, hips: float) -> None:
    metre = _pixels_per_metre(clip, canvas.width)
    ground = clip.ground * canvas.width - 0.4 * _DEPTH * metre
    mask = Image.new("L", canvas.size, 0)
    box = (hips - 0.42 * metre, ground - 0.05 * metre, hips + 0.42 * metre, ground + 0.03 * metre)
    ImageDraw.Draw(mask).ellipse(box, fill=70)
    canvas.paste(SHADOW_COLOUR, None, mask.filter(ImageFilter.GaussianBlur(0.025 * metre)))


class _Figure:
    """Draws the person of one frame: far limbs first, darker, then near leg, trunk and head, then the near arm."""

    def __init__(self, canvas: Image.Image, clip: Clip, points: dict[str, Point]) -> None:
        self._pen = ImageDraw.Draw(canvas)
        self._clip = clip
        self._points = points
        self._metre = _pixels_per_metre(clip, canvas.width)
        self._forward = 1 if clip.facing == "right" else -1

    def draw(self) -> None:
        build, near = self._clip.subject.build, self._clip.near
        far = "left" if near == "right" else "right"
        self._draw_arm(far, light=0.72)
        self._draw_leg(far, light=0.7)
        self._draw_leg(near, light=1.0)
        self._draw_trunk(scale_colour(PALETTE[build.shirt], 0.94))
        self._draw_head(SKIN[build.skin], HAIR[build.hair])
        self._draw_arm(near, light=1.0)

    def _draw_limb(self, start: Point, end: Point, *, widths: tuple[float, float], colour: Rgb) -> None:
        """Draw two discs and the area between them; `widths` are half widths in metres on an average body."""
        radii = [width * self._metre * self._clip.subject.build.girth for width in widths]
        (x, y), (u, v) = start, end
        length = max(float(np.hypot(u - x, v - y)), 1e-6)
        across = ((v - y) / length, -(u - x) / length)
        for (cx, cy), radius in zip((start, end), radii, strict=True):
            self._pen.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=colour)
        corners = [(x, y, radii[0]), (u, v, radii[1]), (u, v, -radii[1]), (x, y, -radii[0])]
        self._pen.polygon([(cx + across[0] * r, cy + across[1] * r) for cx, cy, r in corners], fill=colour)

    def _draw_leg(self, side: str, *, light: float) -> None:
        build, at = self._clip.subject.build, self._points
        cloth, shoe = scale_colour(CLOTH[build.trousers], light), scale_colour(PALETTE[build.shoes], 0.75 * light)
        hip, knee, ankle = (at[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        heel, ball, toe = (self._raise(at[f"{side}_{name}"], 0.034) for name in ("heel", "ball", "toe"))
        self._draw_limb(ankle, heel, widths=(0.04, 0.034), colour=shoe)
        self._draw_limb(ankle, ball, widths=(0.04, 0.034), colour=shoe)
        self._draw_limb(heel, ball, widths=(0.034, 0.034), colour=shoe)
        self._draw_limb(ball, toe, widths=(0.034, 0.03), colour=shoe)
        self._draw_limb(hip, knee, widths=(0.088, 0.062), colour=cloth)
        self._draw_limb(knee, ankle, widths=(0.06, 0.042), colour=cloth)

    def _draw_arm(self, side: str, *, light: float) -> None:
        build, at = self._clip.subject.build, self._points
        shirt, skin = scale_colour(PALETTE[build.shirt], 0.82 * light), scale_colour(SKIN[build.skin], light)
        shoulder, elbow, wrist, hand = (at[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist", "hand"))
        self._draw_limb(wrist, hand, widths=(0.028, 0.036), colour=skin)
        self._draw_limb(elbow, wrist, widths=(0.036, 0.027), colour=skin)
        self._draw_limb(shoulder, elbow, widths=(0.054, 0.042), colour=shirt)

    def _draw_trunk(self, shirt: Rgb) -> None:
        at = self._points
        left, right = at["left_hip"], at["right_hip"]
        hips = self._raise(((left[0] + right[0]) / 2, (left[1] + right[1]) / 2), 0.02)
        neck = at["neck"]
        chest = (neck[0] + 0.22 * (hips[0] - neck[0]), neck[1] + 0.22 * (hips[1] - neck[1]))
        self._draw_limb(hips, chest, widths=(0.1, 0.12), colour=shirt)
        self._draw_limb(chest, neck, widths=(0.112, 0.05), colour=shirt)

    def _draw_head(self, skin: Rgb, hair: Rgb) -> None:
        at, radius = self._points, self._metre * self._clip.subject.build.head
        x, y = at["head"]
        self._draw_limb(at["neck"], (x, y), widths=(0.05, 0.045), colour=scale_colour(skin, 0.88))
        f = self._forward
        back, crown = x - 0.22 * f * radius, y - 0.2 * radius
        self._draw_disc((back, crown), 1.08 * radius, hair)
        self._draw_disc((x + 0.08 * f * radius, y + 0.06 * radius), 0.98 * radius, skin)
        nose = at["nose"]
        self._draw_disc((nose[0] - 0.12 * f * radius, nose[1] + 0.1 * radius), 0.2 * radius, skin)
        start, end = (190, 318) if f > 0 else (222, 350)
        box = (x - 1.06 * radius, y - 1.14 * radius, x + 1.06 * radius, y + 0.98 * radius)
        self._pen.chord(box, start, end, fill=hair)
        eye = at[f"{self._clip.near}_eye"]
        self._draw_disc(eye, 0.13 * radius, HAIR["black"])
        self._draw_disc(at[f"{self._clip.near}_ear"], 0.2 * radius, scale_colour(skin, 0.84))

    def _draw_disc(self, centre: Point, radius: float, colour: Rgb) -> None:
        x, y = centre
        self._pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def _raise(self, point: Point, metres: float) -> Point:
        return point[0], point[1] - metres * self._metre
