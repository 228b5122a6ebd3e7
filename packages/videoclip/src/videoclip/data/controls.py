"""Replacements for maps (`data.control`), and their noise and scale (`data.map_noise`, `data.map_scale`).

All randomness is a function of (seed, clip), with and without a cache.

C channels of a map, T frames, S = `side` pixels a side.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip_common.errors import DataError
from clip_common.regions import attention_maps
from videoclip.config import DataConfig
from videoclip.data.maps import find_map_source
from videoclip.data.records import ClipRecord, group_by_subject

_CENTRE = 0.25
"""σ of the centre prior as a share of the picture's side: about a body; the σ of a drawn joint is 0.1."""


def assign_donors(
    records: Sequence[ClipRecord], config: DataConfig, *, channels: int, seed: int
) -> dict[str, ClipRecord]:
    """Return clip_id → the clip of another subject whose map replaces its own (`control=shuffled`).

    Subjects with maps are put in a circle in random order, and each gets the maps of the next one, clip by clip. So no
    subject keeps its own maps, and all clips of a subject get maps of one other. A clip without a map gets none.

    Raises:
        DataError: Fewer than two subjects have maps.
    """
    people = group_by_subject(
        record for record in records if find_map_source(record, config, channels=channels) is not None
    )
    if len(people) < 2:
        raise DataError(
            f"data.control=shuffled: maps of {len(people)} subject(s) among {len(records)} clips cannot be exchanged: "
            "it needs two subjects with maps in every split"
        )
    names = sorted(people)
    circle = [names[place] for place in np.random.default_rng([seed, 0]).permutation(len(names))]
    given = {}
    for name, other in zip(circle, [*circle[1:], circle[0]], strict=True):
        for place, record in enumerate(people[name]):
            given[record.clip_id] = people[other][place % len(people[other])]
    return given


def apply_control(map_CTSS: Tensor, record: ClipRecord, config: DataConfig, *, seed: int) -> Tensor:
    """Return the map that replaces a clip's own, (C, T, S, S) float; `none`, `shuffled` and `hidden` keep it.

    `centre`: a Gaussian in the centre, σ = 0.25·S. `uniform`: ones. `random`: in each channel four blobs like those of
    maps drawn from joints, each moving from one random place to another. `absent`: zeros.
    """
    channels, frames, side, _ = map_CTSS.shape
    if config.control == "uniform":
        return torch.ones_like(map_CTSS)
    if config.control == "absent":
        return torch.zeros_like(map_CTSS)
    if config.control == "centre":
        return centre_prior(map_CTSS)
    if config.control == "random":
        rng = _generator(record, seed, stream=1)
        return torch.from_numpy(np.stack([_draw_blobs(rng, frames=frames, side=side) for _ in range(channels)]))
    return map_CTSS


def centre_prior(like: Tensor) -> Tensor:
    """Return a Gaussian in the centre of each picture (…, S, S), 0 to 1, of the shape of a tensor."""
    side = like.shape[-1]
    falling_S = torch.exp(-(((torch.arange(side) + 0.5) / side - 0.5) ** 2) / (2 * _CENTRE**2))
    return (falling_S[:, None] * falling_S).expand(like.shape).contiguous()


def disturb_map(map_CTSS: Tensor, record: ClipRecord, config: DataConfig, *, seed: int) -> Tensor:
    """Return the map with noise, clamped to 0 to 1, and then scaled. A map of zeros gets no noise."""
    if config.map_noise and bool(map_CTSS.any()):
        noise = _generator(record, seed, stream=2).standard_normal(map_CTSS.shape, dtype=np.float32)
        map_CTSS = (map_CTSS + config.map_noise * torch.from_numpy(noise)).clamp(0, 1)
    return map_CTSS * config.map_scale


def _draw_blobs(rng: np.random.Generator, *, frames: int, side: int) -> np.ndarray:
    begin_J2, end_J2 = rng.uniform(0, side, size=(2, 17, 2))
    share_T11 = np.linspace(0, 1, frames)[:, None, None]
    places_TJ2 = begin_J2 + share_T11 * (end_J2 - begin_J2)
    seen_TJ1 = np.ones((frames, 17, 1))
    joints_TJ3 = np.concatenate([places_TJ2, seen_TJ1], axis=-1).astype(np.float32)
    return attention_maps(joints_TJ3, ("foot", "wrist"), height=side, width=side)


def _generator(record: ClipRecord, seed: int, *, stream: int) -> np.random.Generator:
    clip = int.from_bytes(hashlib.sha256(record.clip_id.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, stream, clip])
