"""Who walks: subjects and their clips, drawn by lot from (version, seed, subject, clip).

A subject comes with a complaint about one region of the body. In most of them one side moves wrongly there; in a normal
one nothing does. Build, colours and gait say nothing about which it is.
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
"""The classes of a set unless others are named; a condition's place in the tuple is its label."""

SKINS = ("pale", "fair", "tan", "brown", "dark")
HAIRS = ("blond", "red", "brown", "black", "grey")
TROUSERS = ("navy", "grey", "brown", "olive", "black")


@dataclass(frozen=True, slots=True)
class Build:
    """A body and its habits. Lengths in metres, angles in radians, times in seconds.

    `uneven` holds how much left and right differ in anybody: log-ratios of foot lift and arm swing, then differences of
    trunk lean and elbow bend, each small against a pathology.
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
    """One person: what is wrong (`condition`), where (`region`; a normal one complains of it too), on which `side`."""

    seed: int
    index: int
    condition: str
    region: str
    side: Side
    build: Build


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording of a subject.

    `severity` is 0 for a normal subject, else up to 1; `phase` is where in the stride the left leg starts (0 to 1);
    `zoom` the height of a person of 1.75 m, `drift` and `ground` (the line of the feet) in heights of the picture.
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
        """The side of the body towards the camera: who walks to the right shows the right one."""
        return self.facing

    def generator(self, stream: str) -> np.random.Generator:
        """A generator of its own for each use (`stream`) of each clip of each subject."""
        return generator(stream, seed=self.subject.seed, index=self.subject.index * _MOST_CLIPS + self.index)


FLOORS = ("grass", "sand", "wood", "snow")
_MOST_CLIPS = 10_000


def sample_subject(seed: int, index: int, *, conditions: tuple[str, ...] = CONDITIONS) -> Subject:
    """Subject number `index` of the world `seed`: always the same, in whatever order subjects are drawn.

    Of every `len(conditions)` consecutive subjects, counted from 0, each has another condition. The complaint of a
    normal one is about a region that a pathology among `conditions` affects, each as often.

    Raises:
        ValueError: `seed` or `index` is negative; a condition that the world does not have, twice the same, or no
            pathology among them.
    """
    known = (NORMAL, *AFFECTED_REGION)
    regions = [AFFECTED_REGION[name] for name in conditions if name in AFFECTED_REGION]
    if not regions or len(set(conditions)) < len(conditions) or not set(conditions) <= set(known):
        raise ValueError(
            f"conditions must be different ones of {', '.join(known)}, not only normal: got {', '.join(conditions)}"
        )
    block, place = divmod(index, len(conditions))
    random = generator("walker", seed=seed, index=index)
    # the condition comes from a stream of its own: nothing of the build can follow from it
    order = generator("walker condition", seed=seed, index=block).permutation(len(conditions))
    condition = conditions[order[place]]
    complaint = generator("walker complaint", seed=seed, index=index)
    anywhere = regions[complaint.integers(len(regions))]
    return Subject(
        seed=seed,
        index=index,
        condition=condition,
        region=AFFECTED_REGION.get(condition, anywhere),
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
    """Clip number `index` of a subject: always the same, in whatever order clips are drawn.

    Raises:
        ValueError: `index` is not 0 to 9999.
    """
    if not 0 <= index < _MOST_CLIPS:
        raise ValueError(f"a subject has clips 0 to {_MOST_CLIPS - 1}: got index={index}")
    random = generator("walk", seed=subject.seed, index=subject.index * _MOST_CLIPS + index)
    severity = random.uniform(0.55, 1.0)  # drawn for everybody, so that it does not shift what follows
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
