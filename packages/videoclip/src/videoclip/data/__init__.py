"""Files → clips with maps → batches: formats, splits, leak checks.

from videoclip.data import ClipCache, VideoMapDataset, make_split, read_clips

records = read_clips(config)                                    # a manifest, or videos/ and attention_maps/
split = make_split(records, config)                             # by subject; a leak raises DataError
cache = ClipCache(folder, split.train, config, channels=1)      # decoded once
dataset = VideoMapDataset(split.train, config, channels=1, seed=0, training=True, cache=cache)
"""

from clip_common.errors import DataError
from videoclip.data.batches import SubjectUniqueBatchSampler, number_subjects
from videoclip.data.cache import ClipCache
from videoclip.data.check import CheckReport, check
from videoclip.data.dataset import Batch, Sample, VideoMapDataset, collate
from videoclip.data.decoding import VideoInfo, probe, read_frames, resolve_span
from videoclip.data.formats import check_labels, read_clips
from videoclip.data.layout import read_layout
from videoclip.data.manifest import read_manifest, write_manifest
from videoclip.data.maps import find_map_source, read_map
from videoclip.data.pairs import Pair, find_problems, read_pair
from videoclip.data.planning import plan
from videoclip.data.records import ClipRecord
from videoclip.data.splits import Split, check_disjoint, make_split, make_splits, missing_classes, subject_folds

__all__ = [
    "Batch",
    "CheckReport",
    "ClipCache",
    "ClipRecord",
    "DataError",
    "Pair",
    "Sample",
    "Split",
    "SubjectUniqueBatchSampler",
    "VideoInfo",
    "VideoMapDataset",
    "check",
    "check_disjoint",
    "check_labels",
    "collate",
    "find_map_source",
    "find_problems",
    "make_split",
    "make_splits",
    "missing_classes",
    "number_subjects",
    "plan",
    "probe",
    "read_clips",
    "read_frames",
    "read_layout",
    "read_manifest",
    "read_map",
    "read_pair",
    "resolve_span",
    "subject_folds",
    "write_manifest",
]
