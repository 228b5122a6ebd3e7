"""Caption files of images, in the layouts that people have. Needs the standard library only, pyarrow for parquet.

from clip_common.captions import ReadLog, choose_files, find_caption_files, read_caption_files

for format, files in find_caption_files(Path("flickr8k")).items():
    log = ReadLog(columns={"caption": "sentence"})
    images = read_caption_files(choose_files(files, root, format=format), format=format, log=log)
    print(*log.problems, sep="\\n")
"""

from clip_common.captions.columns import COLUMNS, Row, find_columns, make_row, parse_caption
from clip_common.captions.formats import (
    NAMES,
    PARSERS,
    choose_files,
    find_caption_files,
    find_format,
    list_headers,
)
from clip_common.captions.problems import Place, Problem, ReadLog, check_none
from clip_common.captions.reading import CaptionedImage, merge_rows, read_caption_files
from clip_common.captions.splits import SPLITS, find_split, parse_split

__all__ = [
    "COLUMNS",
    "NAMES",
    "PARSERS",
    "SPLITS",
    "CaptionedImage",
    "Place",
    "Problem",
    "ReadLog",
    "Row",
    "check_none",
    "choose_files",
    "find_caption_files",
    "find_columns",
    "find_format",
    "find_split",
    "list_headers",
    "make_row",
    "merge_rows",
    "parse_caption",
    "parse_split",
    "read_caption_files",
]
