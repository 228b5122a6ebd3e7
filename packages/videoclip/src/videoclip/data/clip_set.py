"""The labelled clips of a data set, decoded once, with their splits and datasets."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_common.errors import DataError
from clip_common.reporting import Reporter, silent
from videoclip.config import Config, DataConfig
from videoclip.config.switches import ClipFacts
from videoclip.data.cache import ClipCache
from videoclip.data.dataset import VideoMapDataset
from videoclip.data.fingerprints import fingerprint_videos
from videoclip.data.formats import check_labels, is_cut, read_clips
from videoclip.data.maps import find_map_source
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
        fingerprints: Folder of the fingerprints of their videos; None computes them each time.
    """

    records: list[ClipRecord]
    cache: ClipCache | None
    skipped: dict[str, str]
    fingerprints: Path | None

    def readable(self, records: Iterable[ClipRecord]) -> tuple[ClipRecord, ...]:
        """Return the clips that are not skipped."""
        return tuple(record for record in records if record.clip_id not in self.skipped)

    def describe_cache(self) -> list[str]:
        """Return a line about the size of the cache, or none without one."""
        return [] if self.cache is None else [self.cache.describe()]

    def splits(self, config: DataConfig) -> list[Split]:
        """Return the split of every fold."""
        splits = make_splits(self.records, config, fingerprints=self.fingerprints)
        return [self._readable_split(split) for split in splits]

    def split(self, config: DataConfig) -> Split:
        """Return the split of `config.fold`."""
        return self._readable_split(make_split(self.records, config, fingerprints=self.fingerprints))

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


def load_clip_set(
    config: Config, *, check: Callable[[ClipFacts], None] | None = None, reporter: Reporter = silent
) -> ClipSet:
    """Read the labelled clips of `data.root`; with `data.cache`, decode them once.

    Args:
        config: See `videoclip.config`.
        check: Called before any clip is decoded; raises if the settings do not suit the set.
        reporter: Shows progress.

    Raises:
        DataError: The set or its labels cannot be used; or, unless `data.on_error=skip`, a clip cannot be read.
    """
    data, channels = config.data, config.model.attn_in_channels
    records = read_clips(data)
    check_labels(records, config.model.model_class_num)
    records = [record for record in records if record.label is not None]
    if not records:
        raise DataError(f"{data.root}: no clip has a label; training and testing need them")
    if check is not None:
        check(describe_clips(records, config))
    cache, skipped, fingerprints = None, {}, find_fingerprints(config)
    if data.cache:
        with reporter("decoding clips") as progress:
            folder = find_cache_folder(config) / "clips"
            cache = ClipCache(folder, records, data, channels=channels, progress=progress)
        skipped = cache.problems
    elif data.on_error == "skip":
        with reporter("reading every clip once") as progress:
            skipped = find_problems(records, data, channels=channels, side=data.size, progress=progress)
    with reporter("looking for copies of videos") as progress:
        fingerprint_videos((record.video for record in records), folder=fingerprints, progress=progress)
    return ClipSet(records, cache, skipped, fingerprints)


def find_cache_folder(config: Config) -> Path:
    """Return the folder of all that is decoded once."""
    return Path(config.data.cache_dir or Path(config.runs) / "cache")


def find_fingerprints(config: Config) -> Path | None:
    """Return the folder of the fingerprints of videos; None if `data.cache` is off."""
    return find_cache_folder(config) / "fingerprints" if config.data.cache else None


def describe_clips(records: Sequence[ClipRecord], config: Config) -> ClipFacts:
    """Return what settings may depend on in a set's clips."""
    data, channels = config.data, config.model.attn_in_channels
    parts = {record.fold for record in records} - {None}
    sources = [find_map_source(record, data, channels=channels) for record in records]
    own = data.control not in ("centre", "random")  # these need no maps of the set
    return ClipFacts(
        cut=is_cut(Path(str(data.root))),
        parts=len(parts) or None,
        maps=not own or any(sources),
        drawn=own and any(source is not None and source.regions for source in sources),
        regions=any(record.regions_doctor1 or record.regions_doctor2 for record in records),
    )
