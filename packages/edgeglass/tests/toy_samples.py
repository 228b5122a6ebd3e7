"""Four samples of image, captions and sound, written in every format, with names that are not ASCII."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from clip_common.errors import DataError
from edgeglass.config import DataConfig
from edgeglass.data import Samples, read_samples

CAPTIONS = {
    "ein hund": ("a dog", "a brown dog"),
    "zwölf": ("zwölf Boxkämpfer", "犬が走る"),
    "c": ("plain",),
    "d": ("one more", "and another"),
}
SPLITS = {"ein hund": "train", "zwölf": "train", "c": "val", "d": "test"}


def png(number: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 8), (50 * number, 90, 30)).save(stream, "PNG")
    return stream.getvalue()


def tone(number: int = 0, *, seconds: float = 0.1, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """A sine of a fifth of full scale: (T, channels) float64."""
    time_T = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.2 * np.sin(2 * np.pi * 220 * (number + 1) * time_T)[:, None], channels, axis=1)


def wav(samples: np.ndarray, *, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format="WAV", subtype=subtype)
    return stream.getvalue()


IMAGES = {name: png(number) for number, name in enumerate(CAPTIONS)}
SOUNDS = {name: wav(tone(number)) for number, name in enumerate(CAPTIONS)}


def write_media(folder: Path, images: str = "images", sounds: str = "sounds") -> None:
    """Write images/NAME.png and sounds/NAME.wav."""
    for name in CAPTIONS:
        for file, content in (
            (folder / images / f"{name}.png", IMAGES[name]),
            (folder / sounds / f"{name}.wav", SOUNDS[name]),
        ):
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_bytes(content)


def rows() -> list[dict]:
    """Rows with paths, as in a JSONL file."""
    return [
        {"image": f"images/{name}.png", "captions": list(texts), "audio": f"sounds/{name}.wav", "split": SPLITS[name]}
        for name, texts in CAPTIONS.items()
    ]


def write_rows(folder: Path, lines: list[dict], name: str = "data.jsonl") -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def write_jsonl(folder: Path) -> None:
    write_media(folder)
    write_rows(folder, rows())


def write_parquet_of_paths(folder: Path) -> None:
    write_media(folder)
    pq.write_table(pa.Table.from_pylist(rows()), folder / "set.parquet")


def write_parquet_of_bytes(folder: Path) -> None:
    lines = [row | {"image": IMAGES[name], "audio": SOUNDS[name]} for name, row in zip(CAPTIONS, rows(), strict=True)]
    pq.write_table(pa.Table.from_pylist(lines), folder / "set.parquet", row_group_size=3)


def write_parquet_of_structs(folder: Path) -> None:
    """As Hugging Face writes: {bytes, path}, one file a split in data/."""
    (folder / "data").mkdir()
    for file_split, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        lines = [
            {
                "image": {"bytes": IMAGES[name], "path": f"{name}.png"},
                "caption": list(texts),
                "audio": {"bytes": SOUNDS[name], "path": None},
            }
            for name, texts in CAPTIONS.items()
            if SPLITS[name] == split
        ]
        pq.write_table(pa.Table.from_pylist(lines), folder / "data" / f"{file_split}-00000-of-00001.parquet")


def write_datasets(folder: Path) -> None:
    """What `datasets` saves to disk: a dictionary of splits."""
    import datasets

    datasets.disable_progress_bars()
    parts = {}
    for key, split in (("train", "train"), ("validation", "val"), ("test", "test")):
        names = [name for name in CAPTIONS if SPLITS[name] == split]
        columns = {
            "photo": [{"bytes": IMAGES[name], "path": None} for name in names],
            "caption": [list(CAPTIONS[name]) for name in names],
            "voice": [{"bytes": SOUNDS[name], "path": None} for name in names],
            "length": [len(name) for name in names],
        }
        part = datasets.Dataset.from_dict(columns)
        part = part.cast_column("photo", datasets.Image()).cast_column("voice", datasets.Audio(decode=False))
        parts[key] = part
    datasets.DatasetDict(parts).save_to_disk(str(folder))


def write_folders(folder: Path) -> None:
    """train/images/NAME.png, train/sounds/NAME.wav, train/texts/NAME.txt, …"""
    for name, split in SPLITS.items():
        contents = {"images": IMAGES[name], "sounds": SOUNDS[name], "texts": "\n".join(CAPTIONS[name]).encode()}
        for (kind, content), suffix in zip(contents.items(), (".png", ".wav", ".txt"), strict=True):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            (folder / split / kind / f"{name}{suffix}").write_bytes(content)


WRITERS = {
    "jsonl": write_jsonl,
    "parquet": write_parquet_of_paths,
    "parquet of bytes": write_parquet_of_bytes,
    "parquet of structs": write_parquet_of_structs,
    "datasets": write_datasets,
    "folders": write_folders,
}
"""Name of a way of writing the samples, which begins with the format, → writer."""


def read(root: Path, **settings) -> Samples:
    return read_samples(DataConfig(root=str(root), **settings))


def refusal(root: Path, **settings) -> str:
    """What `read_samples` says about a set that it refuses."""
    with pytest.raises(DataError) as error:
        read(root, **settings)
    text = str(error.value)
    assert "\n" not in text
    return text


def content_of(source) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source.read()
