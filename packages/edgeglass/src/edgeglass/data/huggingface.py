"""Read a folder of Hugging Face `datasets` (`save_to_disk`); images and sounds stay encoded, in its mapped files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from clip_common.captions import parse_split
from clip_common.errors import DataError, printable
from edgeglass.data.arrow import MediaColumn, media_column, media_values
from edgeglass.data.records import Sample
from edgeglass.data.rows import AUDIO, IMAGES, TEXTS, make_sample

MARKERS = ("dataset_dict.json", "state.json")
"""One of these files is in every folder that `save_to_disk` writes."""


@dataclass(frozen=True, slots=True)
class DatasetsBlob:
    """An image or a sound in a folder of Hugging Face `datasets`; rows in any order cost the same."""

    name: str
    folder: Path
    column: MediaColumn
    row: int

    def read(self) -> bytes:
        """Return the encoded image or sound.

        Raises:
            OSError: The files cannot be read.
        """
        return self.column.take_bytes(_open_table(self.folder, _written_at(self.folder)).slice(self.row, 1))[0].as_py()


def read_datasets(root: Path) -> Iterator[Sample]:
    """Yield one sample a row. Columns are found by their feature types; splits are the keys of a dictionary of sets.

    Images are the column of type Image, sounds that of type Audio, captions that of strings or lists of strings; of
    several, the one that is called `image`, `audio`, or `captions`, `caption` or `text`.

    Raises:
        ImportError: datasets is not installed.
        DataError: A folder that cannot be read, several columns of one kind, or a row that `make_sample` refuses.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{root}: a folder of Hugging Face datasets needs datasets: pip install 'edgeglass[datasets]'"
        ) from error
    loaded = _load(root)
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    id = 0
    for key, part in parts.items():
        split = parse_split(key, at=printable(root))
        place = root / key
        for number, row in enumerate(_read_rows(place, part)):
            yield make_sample(row, id=id, at=f"{printable(place)}, row {number}", folder=root, split=split)
            id += 1


def _read_rows(place: Path, part: Any) -> Iterator[dict[str, Any]]:
    """Yield the values of each row by key, without reading the bytes of images and sounds."""
    roles = _find_columns(part.features, at=printable(place))
    table = part.with_format("arrow")[:]
    columns: dict[str, list[Any]] = {}
    for key, name in roles.items():
        if key not in ("image", "audio"):
            columns[key] = table[name].to_pylist()
            continue
        column = media_column(name, table.schema.field(name).type, at=printable(place))
        has_bytes = [False] * len(table) if column.kind == "path" else column.take_bytes(table).is_valid().to_pylist()
        columns[key] = media_values(column.read_paths(table), has_bytes, partial(_blob, place, column))
    for row in range(len(table)):
        yield {key: values[row] for key, values in columns.items()}


def _blob(place: Path, column: MediaColumn, row: int) -> DatasetsBlob:
    return DatasetsBlob(f"{printable(place)}, row {row}, {column.name}", place, column, row)


def _find_columns(features: Mapping[str, Any], *, at: str) -> dict[str, str]:
    """Return the column of each role: image, audio, captions, split."""
    import datasets

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    sounds = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    texts = [name for name, feature in features.items() if name != "split" and _holds_text(feature)]
    paths = [name for name in texts if name in (*IMAGES, *AUDIO)]
    texts = [name for name in texts if name not in paths]
    roles = {
        "image": _choose(images, IMAGES, at=at) or next((name for name in paths if name in IMAGES), None),
        "audio": _choose(sounds, AUDIO, at=at) or next((name for name in paths if name in AUDIO), None),
        "captions": _choose(texts, TEXTS, at=at),
        "split": "split" if "split" in features else None,
    }
    return {role: name for role, name in roles.items() if name is not None}


def _holds_text(feature: Any) -> bool:
    """Return whether a column holds strings or lists of strings."""
    import datasets

    if isinstance(feature, datasets.List | datasets.LargeList):
        feature = feature.feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _choose(names: list[str], preferred: tuple[str, ...], *, at: str) -> str | None:
    if len(names) < 2:
        return next(iter(names), None)
    chosen = next((name for name in preferred if name in names), None)
    if chosen is None:
        raise DataError(
            f"{at}: columns {', '.join(names)} could each be the {preferred[0]}: rename one to {preferred[0]}"
        )
    return chosen


def _load(folder: Path) -> Any:
    import datasets
    from pyarrow import ArrowException

    try:
        return datasets.load_from_disk(str(folder))
    except (ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{printable(folder)}: not a readable folder of Hugging Face datasets ({' '.join(str(error).split())})"
        ) from error


def _written_at(folder: Path) -> int:
    return (folder / MARKERS[1]).stat().st_mtime_ns


@lru_cache(maxsize=8)
def _open_table(folder: Path, written_at: int) -> Any:
    """Return the table of one split, mapped from its files."""
    return _load(folder).with_format("arrow")[:]
