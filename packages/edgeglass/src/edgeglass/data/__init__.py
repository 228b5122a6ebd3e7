"""Files to samples: images, captions and sounds of any format, in splits.

from edgeglass.config import DataConfig
from edgeglass.data import read_samples

samples = read_samples(DataConfig(root="scenes/"))      # the format is detected from the files
samples.splits["train"][0].captions
"""

from clip_common.errors import DataError
from edgeglass.data.check import CheckReport, check
from edgeglass.data.dataset import choose_caption
from edgeglass.data.formats import FORMATS
from edgeglass.data.loading import read_samples
from edgeglass.data.records import Blob, Sample, Samples, Source
from edgeglass.data.splits import hold_out

__all__ = [
    "FORMATS",
    "Blob",
    "CheckReport",
    "DataError",
    "Sample",
    "Samples",
    "Source",
    "check",
    "choose_caption",
    "hold_out",
    "read_samples",
]
