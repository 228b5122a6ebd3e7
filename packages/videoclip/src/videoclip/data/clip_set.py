"""The labelled clips of a data set, decoded once, with their splits and datasets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_common.errors import DataError
from clip_common.reporting import Reporter, silent
from videoclip.config import Config, DataConfig
from videoclip.data.cache import ClipCache
from videoclip.data.dataset import VideoMapDataset
from videoclip.data.formats import check_labels, read_clips
from videoclip.data.pairs import find_problems
from videoclip.data.records import ClipRecord
from videoclip.data.splits import Split, make_split, make_splits


@dataclass(frozen=True)
class ClipSet:
    """The labelled clips of a data set.

    Attributes:
        records: All of them. Splits are made from all, so that a broken file moves no subject to another part.
        cache: Their decoded pixels; None decodes each time.
        skipped: clip_id → problem, for clips that cannot be read and are left out.
    """

    records: list[ClipRecord]
    cache: ClipCache | None
    skipped: dict[str, str]

    def readable(self, records: Iterable[ClipRecord]) -> tuple[ClipRecord, ...]:
        """Return the clips that are not skipped."""
        return tuple(record for record in records if record.clip_id not in self.skipped)

    def splits(self, config: DataConfig) -> list[Split]:
        """Return the split of every fold."""
        return [self._readable_split(split) for split in make_splits(self.records, config)]

    def split(self, config: DataConfig) -> Split:
        """Return the split of `config.fold`."""
        return self._readable_split(make_split(self.records, config))

    def dataset(self, records: Sequence[ClipRecord], config: Config, *, training: bool) -> VideoMapDataset:
        """Return a dataset of some of the clips; augmented if `training`."""
        return VideoMapDataset(
            records,
            config.data,
            channels=config.model.attn_in_channels,
            seed=config.trainer.seed,
            training=training,
            cache=self.cache,
        )

    def _readable_split(self, split: Split) -> Split:
        return Split(*map(self.readable, split.parts().values()))


def load_clip_set(config: Config, *, reporter: Reporter = silent) -> ClipSet:
    """Read the labelled clips of `data.root`; with `data.cache`, decode them once.

    Raises:
        DataError: The set or its labels cannot be used; or, unless `data.on_error=skip`, a clip cannot be read.
    """
    data, channels = config.data, config.model.attn_in_channels
    records = read_clips(data)
    check_labels(records, config.model.model_class_num)
    records = [record for record in records if record.label is not None]
    if not records:
        raise DataError(f"{data.root}: no clip has a label; training and testing need them")
    cache, skipped = None, {}
    if data.cache:
        folder = Path(data.cache_dir or Path(config.runs) / "cache") / "clips"
        with reporter("decoding clips") as progress:
            cache = ClipCache(folder, records, data, channels=channels, progress=progress)
        skipped = cache.problems
    elif data.on_error == "skip":
        with reporter("reading every clip once") as progress:
            skipped = find_problems(records, data, channels=channels, side=data.size, progress=progress)
    return ClipSet(records, cache, skipped)
