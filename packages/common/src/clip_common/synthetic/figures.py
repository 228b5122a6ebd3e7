"""Subjects who walk and clips of them, sampled from (version, seed, subject, clip).

Every subject complains about one region of the body. Most subjects have a pathology: one side of that region moves
wrongly. Normal subjects have none. Build, colours and gait do not reveal which subjects are normal.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from clip_common.synthetic.scenes import BACKGROUNDS, COLOURS, generator

Side = Literal["left", "right"]

NORMAL = "normal"
AFFECTED_REGION = {
    "dragging foot": "foot",
    "stiff arm": "shoulder",
    "lurching trunk": "lumbar_pelvis",
    "held wrist": "wrist",
}
"""The one region in which each pathology makes left and right differ."""

CONDITIONS = (NORMAL, "dragging foot", "stiff arm")
"""Default classes of a set; the position of a condition in the tuple is its label."""

SKINS = ("pale", "fair", "tan", "brown", "dark")
HAIRS = ("blond", "red", "brown", "black", "grey")
TROUSERS = ("navy", "grey", "brown", "olive", "black")


@dataclass(frozen=True, slots=True)
class Build:
    """A body and its gait. Lengths in metres, angles in radians, times in seconds.

    `uneven` holds the differences between left and right that every subject has: log-ratios of foot lift and arm swing,
    then differences of trunk lean and elbow bend, all small compared with a pathology.
    """

    height: float
    thigh: float
    shank: float
    trunk: float
    upper_arm: float
    forearm: float
    head: float  # radius
    girth: float  # 1 is average
    stride: float
    stride_time: float
    arm_swing: float
    elbow: float
    lean: float
    uneven: tuple[float, float, float, float]
    skin: str
    hair: str
    shirt: str
    trousers: str
    shoes: str


@dataclass(frozen=True, slots=True)
class Subject:
    """One person: the `condition`, the `region` that the person complains about (normal ones too), and the `side`."""

    seed: int
    index: int
    condition: str
    region: str
    side: Side
    build: Build


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording of a subject.

    `severity` is 0 for a normal subject, otherwise up to 1; `phase` is the point in the stride at which the left leg
    starts (0 to 1). In heights of the picture: `zoom` is the height of a person of 1.75 m, `drift` how far the figure
    moves off the centre, and `ground` the y of the line on which the feet stand.
    """

    subject: Subject
    index: int
    severity: float
    phase: float
    facing: Side
    zoom: float
    drift: float
    ground: float
    wall: str
    floor: str

    @property
    def near(self) -> Side:
        """The side of the body towards the camera: a person who walks to the right shows the right side."""
        return self.facing

    def generator(self, stream: str) -> np.random.Generator:
        """Return the random generator of one use (`stream`) of this clip, independent of all others."""
        return generator(stream, seed=self.subject.seed, index=self.subject.index * _MOST_CLIPS + self.index)


FLOORS = ("grass", "sand", "wood", "snow")
_MOST_CLIPS = 10_000


def sample_subject(seed: int, index: int, *, conditions: tuple[str, ...] = CONDITIONS) -> Subject:
    """Return subject number `index` of world `seed`: the same at every call, in any order.

    In each block of `len(conditions)` consecutive subjects, counted from 0, every condition occurs once. Normal
    subjects complain about the regions that the pathologies in `conditions` affect, about each equally often.

    Raises:
        ValueError: `seed` or `index` is negative; a condition is unknown or given twice, or none is a pathology.
    """
    known = (NORMAL, *AFFECTED_REGION)
    regions = [AFFECTED_REGION[name] for name in conditions if name in AFFECTED_REGION]
    if not regions or len(set(conditions)) < len(conditions) or not set(conditions) <= set(known):
        raise ValueError(
            f"conditions must be different ones of {', '.join(known)}, not only normal: got {', '.join(conditions)}"
        )
    block, place = divmod(index, len(conditions))
    random = generator("walker", seed=seed, index=index)
    # a separate stream for the condition: the build cannot depend on it
    order = generator("walker condition", seed=seed, index=block).permutation(len(conditions))
    condition = conditions[order[place]]
    complaint = generator("walker complaint", seed=seed, index=index)
    region_if_normal = regions[complaint.integers(len(regions))]
    return Subject(
        seed=seed,
        index=index,
        condition=condition,
        region=AFFECTED_REGION.get(condition, region_if_normal),
        side="left" if complaint.random() < 0.5 else "right",
        build=_sample_build(random),
    )


def _sample_build(random: np.random.Generator) -> Build:
    height = random.uniform(1.52, 1.92)
    leg = height * random.uniform(0.445, 0.475)  # hip to ankle
    arm = height * random.uniform(0.30, 0.33)  # shoulder to wrist
    uneven = 0.05 * np.clip(random.normal(size=4), -1.8, 1.8) * (1, 1, 0.4, 1)
    return Build(
        height=height,
        thigh=0.505 * leg,
        shank=0.495 * leg,
        trunk=height * random.uniform(0.285, 0.31),
        upper_arm=0.53 * arm,
        forearm=0.47 * arm,
        head=height * random.uniform(0.062, 0.068),
        girth=random.uniform(0.85, 1.25),
        stride=leg * random.uniform(1.35, 1.6),
        stride_time=random.uniform(0.86, 1.0),  # a clip of a second shows a whole stride
        arm_swing=random.uniform(0.36, 0.56),
        elbow=random.uniform(0.3, 0.5),
        lean=random.uniform(0.0, 0.07),
        uneven=(float(uneven[0]), float(uneven[1]), float(uneven[2]), float(uneven[3])),
        skin=SKINS[random.integers(len(SKINS))],
        hair=HAIRS[random.integers(len(HAIRS))],
        shirt=COLOURS[random.integers(len(COLOURS))],
        trousers=TROUSERS[random.integers(len(TROUSERS))],
        shoes=COLOURS[random.integers(len(COLOURS))],
    )


def sample_clip(subject: Subject, index: int) -> Clip:
    """Return clip number `index` of a subject: the same at every call, in any order.

    Raises:
        ValueError: `index` is not 0 to 9999.
    """
    if not 0 <= index < _MOST_CLIPS:
        raise ValueError(f"a subject has clips 0 to {_MOST_CLIPS - 1}: got index={index}")
    random = generator("walk", seed=subject.seed, index=subject.index * _MOST_CLIPS + index)
    severity = random.uniform(0.55, 1.0)  # for normal subjects too: later values must not depend on the condition
    wall = BACKGROUNDS[random.integers(len(BACKGROUNDS))]
    floors = [name for name in FLOORS if name != wall]
    return Clip(
        subject=subject,
        index=index,
        severity=0.0 if subject.condition == NORMAL else severity,
        phase=random.random(),
        facing="right" if random.random() < 0.5 else "left",
        zoom=random.uniform(0.72, 0.8),
        drift=random.uniform(-0.1, 0.1),
        ground=random.uniform(0.91, 0.95),
        wall=wall,
        floor=floors[random.integers(len(floors))],
    )
