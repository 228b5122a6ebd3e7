"""From files to samples to batches.

from aaclip.data import AnomalyDataset, check, read_dataset, check_masks, training_records

data = read_dataset("mvtec/", classes=["bottle"])                     # any of the formats, recognised by their files
records = training_records(data, config.data, seed=config.trainer.seed)
check_masks(records)
dataset = AnomalyDataset(records, preprocess=bundle.preprocess, size=518, seed=0)
"""

from aaclip.data.augment import Augment
from aaclip.data.check import CheckReport, Count, check
from aaclip.data.dataset import AnomalyDataset, Batch, Sample, collate
from aaclip.data.formats import FORMATS, read_dataset
from aaclip.data.records import Dataset, Record
from aaclip.data.selection import check_masks, check_no_overlap, few_shot, load_list, save_list, training_records
from clip_common.errors import DataError

__all__ = [
    "FORMATS",
    "AnomalyDataset",
    "Augment",
    "Batch",
    "CheckReport",
    "Count",
    "DataError",
    "Dataset",
    "Record",
    "Sample",
    "check",
    "check_masks",
    "check_no_overlap",
    "collate",
    "few_shot",
    "load_list",
    "read_dataset",
    "save_list",
    "training_records",
]
