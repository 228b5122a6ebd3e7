"""Caption files of images, in the layouts of Flickr8k, Karpathy and open_clip. Needs the standard library only.

from clip_common.captions import choose_file, find_caption_files, read_caption_file

for format, files in find_caption_files(Path("flickr8k")).items():
    images = read_caption_file(choose_file(files, root, format=format), format=format)
"""

from clip_common.captions.formats import (
    NAMES,
    PARSERS,
    Row,
    choose_file,
    find_caption_files,
    find_format,
    parse_caption,
)
from clip_common.captions.reading import CaptionedImage, read_caption_file
from clip_common.captions.splits import SPLITS, find_split, parse_split

__all__ = [
    "NAMES",
    "PARSERS",
    "SPLITS",
    "CaptionedImage",
    "Row",
    "choose_file",
    "find_caption_files",
    "find_format",
    "find_split",
    "parse_caption",
    "parse_split",
    "read_caption_file",
]
