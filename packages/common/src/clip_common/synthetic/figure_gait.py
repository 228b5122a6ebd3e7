"""The gait of a figure: every joint at any moment, in metres, computed from the feet upwards.

The feet come first, each fixed on the floor during its stance. The pelvis is as high as both legs can reach, and the
knees follow by inverse kinematics, so that thighs and shanks keep their lengths. T moments.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clip_common.synthetic.figures import Build, Clip, Side

Floats = NDArray[np.float64]

SIDES: tuple[Side, Side] = ("left", "right")
ANKLE = 0.08
"""Height of the ankle above the sole, in metres."""
HEEL, BALL, TOE = -0.06, 0.125, 0.185
"""Positions of heel, ball and toe on the sole of a flat foot, in metres forward of the ankle."""

_STANCE = 0.6  # share of the stride in which a foot is on the floor
_REACH = 0.995  # a leg is never quite straight

# Pitch of the foot in radians (heel up is positive) and clearance below it in metres: (points of the stride, values).
_PITCH = ((0.0, 0.08, 0.36, 0.6, 0.72, 0.88, 1.0), (-0.32, 0.0, 0.0, 1.0, 0.75, -0.2, -0.32))
_DRAGGED_PITCH = (_PITCH[0], (0.02, 0.0, 0.0, 0.28, 0.3, 0.22, 0.02))
_CLEARANCE = ((0.0, 0.6, 0.72, 0.86, 1.0), (0.0, 0.0, 0.07, 0.04, 0.0))


def body_points(clip: Clip, seconds: ArrayLike) -> dict[str, Floats]:
    """Return the position of every point of the body, seen from the side.

    Args:
        clip: The subject and the severity of the condition.
        seconds: T moments, in seconds from the start of the clip.

    Returns:
        (T, 2) metres for each name: x forward from the hips, y up from the floor; `left_` and `right_` hip, knee,
        ankle, heel, ball, toe, shoulder, elbow, wrist and hand; neck and head (its centre). The floor moves backwards
        under them at `speed(build)`.
    """
    build = clip.subject.build
    phases = np.asarray(seconds, dtype=np.float64) / build.stride_time + clip.phase
    round_trip = np.linspace(0, 1, 120, endpoint=False)
    level, sway = _pelvis(clip, round_trip)
    height = level - sway * np.cos(4 * np.pi * phases)
    lean = _lean(clip, phases)
    spine = np.stack([np.sin(lean), np.cos(lean)], axis=-1)
    pelvis = np.stack([np.zeros_like(height), height], axis=-1)
    points = {"neck": pelvis + build.trunk * spine}
    points["head"] = points["neck"] + _rotate(0.25 * build.head, 1.45 * build.head, lean=0.5 * lean)
    for side in SIDES:
        phase = phases + (side == "right") / 2
        points |= {f"{side}_{name}": point for name, point in _leg_points(clip, side, phase, pelvis).items()}
        points |= {f"{side}_{name}": point for name, point in _arm_points(clip, side, phase, pelvis, spine).items()}
    return points


def speed(build: Build) -> float:
    """Return the walking speed in metres a second."""
    return build.stride / build.stride_time


def _severity(clip: Clip, condition: str, side: Side) -> float:
    subject = clip.subject
    return clip.severity if (subject.condition, subject.side) == (condition, side) else 0.0


def _interpolate(phase: Floats, table: tuple[tuple[float, ...], tuple[float, ...]]) -> Floats:
    """Return a periodic curve through the points of a table, with slope 0 at each of them."""
    knots, values = (np.array(column) for column in table)
    phase = phase % 1
    cell = np.clip(np.searchsorted(knots, phase, side="right") - 1, 0, len(knots) - 2)
    along = (phase - knots[cell]) / (knots[cell + 1] - knots[cell])
    return np.asarray(values[cell] + (values[cell + 1] - values[cell]) * along**2 * (3 - 2 * along))


def _bump(phase: Floats, centre: float) -> Floats:
    """Return a bump: 1 at `centre`, 0 from a quarter of the stride away."""
    return np.asarray(np.maximum(0, np.cos(2 * np.pi * (phase - centre))) ** 2)


def _foot(clip: Clip, side: Side, phase: Floats) -> tuple[Floats, Floats]:
    """Return ankle (T, 2) and pitch (T,) of a foot: it is planted, rolls over the ball and swings forward."""
    build, phase = clip.subject.build, phase % 1
    dragged = _severity(clip, "dragging foot", side)
    lift = np.exp((build.uneven[0] if side == "left" else -build.uneven[0]) / 2)
    pitch = lift * ((1 - dragged) * _interpolate(phase, _PITCH) + dragged * _interpolate(phase, _DRAGGED_PITCH))
    clearance = lift * (1 - dragged) * _interpolate(phase, _CLEARANCE)
    front = (0.29 - 0.03 * dragged) * build.stride  # a dragged foot lands short
    back = front - _STANCE * build.stride
    along = np.clip((phase - _STANCE) / (1 - _STANCE), 0, 1)
    pace = -build.stride * (1 - _STANCE)  # the foot leaves and meets the floor at the floor's speed
    swing = (
        back * (2 * along**3 - 3 * along**2 + 1)
        + front * (3 * along**2 - 2 * along**3)
        + pace * (along**3 - 2 * along**2 + along + along**3 - along**2)
    )
    flat = np.where(phase < _STANCE, front - phase * build.stride, swing)
    pivot = np.where(pitch > 0, BALL, HEEL)
    x = flat + pivot - pivot * np.cos(pitch) + ANKLE * np.sin(pitch)
    y = clearance + pivot * np.sin(pitch) + ANKLE * np.cos(pitch)
    return np.stack([x, y], axis=-1), pitch


def _hip(clip: Clip, side: Side, phase: Floats) -> Floats:
    """Return a hip relative to the middle of the pelvis, (T, 2): it moves forward with its leg, drops in the swing."""
    weak = _severity(clip, "lurching trunk", "left" if side == "right" else "right")
    drop = (0.012 + 0.05 * weak) * _bump(phase, 0.8)
    return np.stack([0.02 * np.cos(2 * np.pi * phase), -drop], axis=-1)


def _pelvis(clip: Clip, round_trip: Floats) -> tuple[float, float]:
    """Return mean height and vertical amplitude of the pelvis: as high as both legs reach throughout the stride."""
    build = clip.subject.build
    room = []
    for side in SIDES:
        phase = round_trip + (side == "right") / 2
        hip, (ankle, _) = _hip(clip, side, phase), _foot(clip, side, phase)
        across = ankle[:, 0] - hip[:, 0]
        room.append(ankle[:, 1] - hip[:, 1] + np.sqrt((_REACH * (build.thigh + build.shank)) ** 2 - across**2))
    sway = 0.022 * build.height / 1.75
    return float((np.min(room, axis=0) + sway * np.cos(4 * np.pi * round_trip)).min()), sway


def _leg_points(clip: Clip, side: Side, phase: Floats, pelvis: Floats) -> dict[str, Floats]:
    build = clip.subject.build
    hip = pelvis + _hip(clip, side, phase)
    ankle, pitch = _foot(clip, side, phase)
    sole = {name: ankle + _rotate(x, -ANKLE, lean=pitch) for name, x in (("heel", HEEL), ("ball", BALL))}
    # the toes stay flat on the floor while the heel rises
    toe = sole["ball"] + _rotate(TOE - BALL, 0.0, lean=np.minimum(pitch, 0))
    return {"hip": hip, "knee": _knee(hip, ankle, build), "ankle": ankle, **sole, "toe": toe}


def _knee(hip: Floats, ankle: Floats, build: Build) -> Floats:
    """Return the knee: a thigh from the hip and a shank from the ankle, in front of the line between them."""
    line = ankle - hip
    length = np.linalg.norm(line, axis=-1, keepdims=True)
    along = (build.thigh**2 - build.shank**2 + length**2) / (2 * length)
    forward = np.stack([-line[:, 1], line[:, 0]], axis=-1) / length
    return np.asarray(hip + along * line / length + np.sqrt(build.thigh**2 - along**2) * forward)


def _arm_points(clip: Clip, side: Side, phase: Floats, pelvis: Floats, spine: Floats) -> dict[str, Floats]:
    """Return the points of an arm: it swings with the opposite leg, and the elbow bends more in front."""
    build, sign = clip.subject.build, 1 if side == "left" else -1
    loose = np.exp(sign * build.uneven[1] / 2) * (1 - 0.9 * _severity(clip, "stiff arm", side))
    held = _severity(clip, "held wrist", side)
    forward = -np.cos(2 * np.pi * phase)
    shoulder = pelvis + 0.94 * build.trunk * spine + np.stack([0.02 * forward, np.zeros_like(forward)], axis=-1)
    upper = build.arm_swing * loose * forward - 0.04
    bend = build.elbow + sign * build.uneven[3] / 2 + 0.2 * loose * (1 - held) * forward + 1.3 * held
    elbow = shoulder + _rotate(0.0, -build.upper_arm, lean=-upper)
    wrist = elbow + _rotate(0.0, -build.forearm, lean=-upper - bend)
    hand = wrist + _rotate(0.0, -0.05 * build.height, lean=-upper - bend - 0.15)
    return {"shoulder": shoulder, "elbow": elbow, "wrist": wrist, "hand": hand}


def _lean(clip: Clip, phases: Floats) -> Floats:
    """Return the forward lean of the trunk, (T,): it nods with each step and lurches back over a weak hip."""
    build = clip.subject.build
    lean = build.lean + 0.015 * np.cos(4 * np.pi * phases)
    for side in SIDES:
        uneven = build.uneven[2] / 2 if side == "left" else -build.uneven[2] / 2
        back = uneven + 0.32 * _severity(clip, "lurching trunk", side)
        lean = lean - back * _bump(phases + (side == "right") / 2, 0.3)
    return np.asarray(lean)


def _rotate(x: float, y: float, *, lean: Floats) -> Floats:
    """Return a vector turned forward by each angle, (T, 2): clockwise for a figure that walks to the right."""
    return np.stack([x * np.cos(lean) + y * np.sin(lean), y * np.cos(lean) - x * np.sin(lean)], axis=-1)
