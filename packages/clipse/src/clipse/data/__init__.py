"""Caption files and images to samples to batches.

from clipse.data import load_captions, Flickr8kDataset, CLIPCollator

data = load_captions("flickr8k/")                                   # the format is detected from the files
dataset = Flickr8kDataset(data.split("train"), preprocess=bundle.train_preprocess, seed=13, augment=True)
"""

from clip_common.errors import DataError
from clipse.data.batches import TopicalBatchSampler, find_topics
from clipse.data.cache import ImageCache
from clipse.data.check import CheckReport, Stats, check, stats
from clipse.data.dataset import Batch, CLIPCollator, Flickr8kDataset, Sample, choose_captions
from clipse.data.groups import read_groups
from clipse.data.loading import Records, load_captions, read_records
from clipse.data.records import CaptionData, ImageRecord
from clipse.data.splits import hold_out

__all__ = [
    "Batch",
    "CLIPCollator",
    "CaptionData",
    "CheckReport",
    "DataError",
    "Flickr8kDataset",
    "ImageCache",
    "ImageRecord",
    "Records",
    "Sample",
    "Stats",
    "TopicalBatchSampler",
    "check",
    "choose_captions",
    "find_topics",
    "hold_out",
    "load_captions",
    "read_groups",
    "read_records",
    "stats",
]
