"""From records to samples to batches: uint8 frames, which are normalised on the device, and maps.

B clips of a batch, C channels of a map, T frames, H = W = `data.size` pixels.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from clip_common.loader import epoch_seed
from videoclip.config import DataConfig
from videoclip.data.augment import augment
from videoclip.data.cache import ClipCache
from videoclip.data.controls import apply_control, assign_donors, disturb_map
from videoclip.data.maps import identify_map, read_map
from videoclip.data.pairs import Pair, read_pair
from videoclip.data.records import ClipRecord


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip.

    Attributes:
        video_3THW: uint8 RGB.
        map_CTHW: float32.
        valid: Whether the clip has a map that is not constant.
        guides: Whether its map may guide the pooling (`control=hidden`: it may not).
        label: The class; -1 if unknown.
        index: Position in the dataset.
        subject, regions, map: Numbers, see `Batch`.
        clip_id: Its name.
    """

    video_3THW: Tensor
    map_CTHW: Tensor
    valid: bool
    guides: bool
    label: int
    index: int
    subject: int
    regions: int
    map: int
    clip_id: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples stacked. Subject, region and map numbers are those of one dataset.

    Attributes:
        video_B3THW: uint8 RGB.
        map_BCTHW: float32.
        valid_B, guides_B: Bool, see `Sample`.
        label_B: Long, -1 if unknown.
        subject_B: Long, equal for clips of one subject.
        regions_B: Long, equal if the maps shown are of the same set of regions; unique for a clip without regions or
            with a control map.
        map_B: Long, equal if the maps have one origin (`maps.identify_map`); unique for a clip without a map.
        clip_ids: B names.
    """

    video_B3THW: Tensor
    map_BCTHW: Tensor
    valid_B: Tensor
    guides_B: Tensor
    label_B: Tensor
    subject_B: Tensor
    regions_B: Tensor
    map_B: Tensor
    clip_ids: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch with its tensors on a device."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        moved: dict[str, Any] = {name: value.to(device) for name, value in values if torch.is_tensor(value)}
        return replace(self, **moved)


class VideoMapDataset(Dataset[Sample]):
    """One sample per clip; all randomness is a function of (seed, epoch, index) or of (seed, clip).

    Args:
        records: The clips of one split.
        config: Which maps, their noise and controls, and the augmentation of training clips.
        channels: Channels of a map.
        seed: Seed of all randomness.
        training: Whether to augment clips.
        cache: Decoded clips, or None to decode each time.

    Attributes:
        records: The clips, in order, without those that the cache could not read.

    Raises:
        DataError: Maps are to be shuffled, and fewer than two subjects have one.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        config: DataConfig,
        *,
        channels: int,
        seed: int,
        training: bool,
        cache: ClipCache | None = None,
    ) -> None:
        left_out = set() if cache is None else set(cache.problems)
        records = tuple(record for record in records if record.clip_id not in left_out)
        self.records, self.config, self.channels, self.seed = records, config, channels, seed
        self.training, self.cache = training, cache
        self.epoch = 0
        self.shown = {record.clip_id: record for record in records}
        """clip_id → the clip whose map it is shown with."""
        if config.control == "shuffled":
            self.shown |= assign_donors(records, config, channels=channels, seed=seed)
        self.subjects = _number_values(record.subject_id for record in records)
        self.regions = _number_values(_attended_regions(self.shown[record.clip_id], config) for record in records)
        self.maps = _number_values(
            identify_map(self.shown[record.clip_id], config, channels=channels) for record in records
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which changes the random views."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample of a clip.

        Raises:
            DataError: The clip or its map cannot be read.
        """
        record = self.records[index]
        pair = self._pair(record)
        map_CTHW = apply_control(pair.map_CTSS.float() / 255, record, self.config, seed=self.seed)
        map_CTHW = disturb_map(map_CTHW, record, self.config, seed=self.seed)
        frames_T3HW = pair.frames_T3SS
        if self.training:
            rng = torch.Generator().manual_seed(epoch_seed(epoch_seed(self.seed, self.epoch), index))
            frames_T3HW, map_CTHW = augment(frames_T3HW, map_CTHW, self.config.augment, rng)
        return Sample(
            video_3THW=frames_T3HW.transpose(0, 1),
            map_CTHW=map_CTHW,
            valid=bool(map_CTHW.max() > map_CTHW.min()),
            guides=self.config.control != "hidden",
            label=-1 if record.label is None else record.label,
            index=index,
            subject=self.subjects[index],
            regions=self.regions[index],
            map=self.maps[index],
            clip_id=record.clip_id,
        )

    def _pair(self, record: ClipRecord) -> Pair:
        shown = self.shown[record.clip_id]
        if self.cache is not None:
            pair = self.cache[record]
            return pair if shown is record else replace(pair, map_CTSS=self.cache[shown].map_CTSS)
        knobs = {"channels": self.channels, "side": self.config.size}
        pair = read_pair(record, self.config, **knobs)
        return pair if shown is record else replace(pair, map_CTSS=read_map(shown, self.config, **knobs))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch."""
    return Batch(
        video_B3THW=torch.stack([sample.video_3THW for sample in samples]),
        map_BCTHW=torch.stack([sample.map_CTHW for sample in samples]),
        valid_B=torch.tensor([sample.valid for sample in samples]),
        guides_B=torch.tensor([sample.guides for sample in samples]),
        label_B=torch.tensor([sample.label for sample in samples]),
        subject_B=torch.tensor([sample.subject for sample in samples]),
        regions_B=torch.tensor([sample.regions for sample in samples]),
        map_B=torch.tensor([sample.map for sample in samples]),
        clip_ids=tuple(sample.clip_id for sample in samples),
    )


def _attended_regions(record: ClipRecord, config: DataConfig) -> frozenset[str] | None:
    if config.control not in ("none", "shuffled", "hidden"):
        return None  # a control must not learn from the doctors' regions
    of_1, of_2 = set(record.regions_doctor1), set(record.regions_doctor2)
    regions = {"doctor1": of_1, "doctor2": of_2}.get(config.maps, of_1 | of_2)
    return frozenset(regions) or None


def _number_values(values: Iterable[Hashable | None]) -> list[int]:
    """Return a number per value, equal for equal values, in order of first appearance; each None gets its own."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(object() if value is None else value, len(numbers)) for value in values]
