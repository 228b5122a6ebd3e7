"""A captioned set with splits, written in every format that clipse reads."""

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toy_shards import add


@dataclass(frozen=True)
class Piece:
    """One image with its captions."""

    name: str
    split: str
    captions: tuple[str, ...]
    content: bytes

    @property
    def stem(self) -> str:
        return Path(self.name).stem


Writer = Callable[[Path, Sequence[Piece]], list[str]]
"""Writes a set into an empty folder; returns the overrides with which it is read."""


def pairs(pieces: Sequence[Piece]) -> list[tuple[Piece, int, str]]:
    return [(piece, number, caption) for piece in pieces for number, caption in enumerate(piece.captions)]


def splits(pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    return {name: [p for p in pieces if p.split == name] for name in sorted({piece.split for piece in pieces})}


def lay(folder: Path, pieces: Sequence[Piece], *, lists: bool = False) -> None:
    """Write the pictures, and Flickr8k's lists of the splits beside their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for piece in pieces:
        (folder / piece.name).write_bytes(piece.content)
    if lists:
        for split, prefix in (("train", "train"), ("val", "dev"), ("test", "test")):
            names = [piece.name for piece in pieces if piece.split == split]
            (folder.parent / f"Flickr_8k.{prefix}Images.txt").write_text("\n".join(names), encoding="utf-8")


def table(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str = ",") -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])


def json_file(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def write_karpathy(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "Images", pieces)
    images = [
        {"filename": p.name, "split": p.split, "sentences": [{"raw": caption} for caption in p.captions]}
        for p in pieces
    ]
    json_file(folder / "dataset.json", {"images": images})
    return []


def write_kaggle(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "Images", pieces, lists=True)
    table(folder / "captions.txt", ("image", "caption"), [(p.name, caption) for p, _, caption in pairs(pieces)])
    return []


def write_kaggle_flickr30k(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    """Kaggle's Flickr30k in commas; its captions are not quoted."""
    lay(folder / "flickr30k_images", pieces, lists=True)
    rows = [f"{p.name},{number},{caption}" for p, number, caption in pairs(pieces)]
    text = "\n".join(["image_name,comment_number,comment", *rows])
    (folder / "captions.txt").write_text(text, encoding="utf-8")
    return []


def write_results(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "flickr30k_images", pieces, lists=True)
    rows = [f"{p.name}| {number}| {caption} " for p, number, caption in pairs(pieces)]
    text = "\n".join(["image_name| comment_number| comment", *rows])
    (folder / "results.csv").write_text(text, encoding="utf-8")
    return []


def write_captions_csv(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "images", pieces, lists=True)
    rows = [(p.name, caption, row) for row, (p, _, caption) in enumerate(pairs(pieces))]
    table(folder / "captions.csv", ("image", "caption", "id"), rows)
    return []


def write_token(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "Flicker8k_Dataset", pieces, lists=True)
    lines = [f"{p.name}#{number}\t{caption}" for p, number, caption in pairs(pieces)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines), encoding="utf-8")
    return []


def write_captions_tsv(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "Images", pieces)
    lines = [f"{p.stem}\t{caption}\tImages/{p.name}\t{p.split}" for p, _, caption in pairs(pieces)]
    (folder / "captions.tsv").write_text("\n".join(["image_id\tcaption\timage_path\tsplit", *lines]), encoding="utf-8")
    return []


def write_open_clip(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "Images", pieces, lists=True)
    rows = [(f"Images/{p.name}", caption) for p, _, caption in pairs(pieces)]
    table(folder / "pairs.tsv", ("filepath", "title"), rows, "\t")
    return []


def write_absolute(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    """open_clip's table with absolute paths, and pictures elsewhere."""
    lay(folder / "elsewhere", pieces)
    (folder / "set").mkdir()
    rows = [((folder / "elsewhere" / p.name).resolve(), caption, p.split) for p, _, caption in pairs(pieces)]
    table(folder / "set" / "pairs.csv", ("filepath", "title", "split"), rows)
    return [f"data.root={folder / 'set'}"]


def write_one_table_a_split(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "images", pieces)
    for split, members in splits(pieces).items():
        table(folder / f"{split}.csv", ("File Name", "Caption"), [(p.name, c) for p, _, c in pairs(members)])
    return []


def write_named_files(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    """Several files at once, with columns that are not among the known ones."""
    lay(folder / "images", pieces)
    rows = [(p.split, caption, p.name) for p, _, caption in pairs(pieces)]
    for name, part in (("a.csv", rows[: len(rows) // 2]), ("b.csv", rows[len(rows) // 2 :])):
        table(folder / name, ("part", "words", "photo"), part)
    return ["data.files=[a.csv,b.csv]", *(f"data.columns.{r}" for r in ("image=photo", "caption=words", "split=part"))]


def write_coco(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    for split, members in splits(pieces).items():
        lay(folder / f"{split}2017", members)
        rows = pairs(members)
        value = {
            "info": {"description": "toy"},
            "images": [{"id": 7 * number, "file_name": p.name} for number, p in enumerate(members)],
            "annotations": [
                {"image_id": 7 * members.index(p), "id": row, "caption": text} for row, (p, _, text) in enumerate(rows)
            ],
        }
        json_file(folder / "annotations" / f"captions_{split}2017.json", value)
    # beside the captions, as COCO has them
    instances = {"images": [], "annotations": [{"image_id": 0, "bbox": []}], "categories": []}
    json_file(folder / "annotations" / "instances_train2017.json", instances)
    return []


def write_lavis(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    lay(folder / "images", pieces)
    for split, members in splits(pieces).items():
        if split == "train":
            value = [
                {"image": f"images/{p.name}", "caption": text, "image_id": p.stem} for p, _, text in pairs(members)
            ]
        else:
            value = [{"image": f"images/{p.name}", "caption": list(p.captions)} for p in members]
        json_file(folder / f"coco_karpathy_{split}.json", value)
    return []


def write_imagefolder_jsonl(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    for split, members in splits(pieces).items():
        lay(folder / split, members)
        lines = [json.dumps({"file_name": p.name, "text": text}) for p, _, text in pairs(members)]
        (folder / split / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return []


def write_imagefolder_csv(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    for split, members in splits(pieces).items():
        lay(folder / split, members)
        table(folder / split / "metadata.csv", ("file_name", "text"), [(p.name, c) for p, _, c in pairs(members)])
    return []


def write_imagefolder_parquet(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for split, members in splits(pieces).items():
        lay(folder / split, members)
        columns = {"file_name": [p.name for p in members], "text": [list(p.captions) for p in members]}
        parquet.write_table(pyarrow.table(columns), folder / split / "metadata.parquet")
    return []


def write_datasets(folder: Path, pieces: Sequence[Piece], *, by_caption: bool = False) -> list[str]:
    """A DatasetDict with the bytes of the images; a row for each image, or for each caption."""
    datasets = pytest.importorskip("datasets")
    parts = {}
    for split, members in splits(pieces).items():
        rows = (
            [{"image": {"bytes": p.content, "path": None}, "caption": text} for p, _, text in pairs(members)]
            if by_caption
            else [{"image": {"bytes": p.content, "path": p.name}, "caption": list(p.captions)} for p in members]
        )
        parts[split] = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=True))
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return []


def write_datasets_by_caption(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    return write_datasets(folder, pieces, by_caption=True)


def write_shards(folder: Path, pieces: Sequence[Piece], *, image: str = "jpg", text: str = "txt") -> list[str]:
    """Shards of at most 100 samples."""
    for split, members in splits(pieces).items():
        for first in range(0, len(members), 100):
            with tarfile.open(folder / f"{split}-{first:05}.tar", "w") as archive:
                for piece in members[first : first + 100]:
                    add(archive, f"{piece.stem}.{image}", piece.content)
                    if text == "txt":  # img2dataset writes both; its JSON describes the download
                        add(archive, f"{piece.stem}.json", b'{"url": "https://example.org", "status": "success"}')
                        add(archive, f"{piece.stem}.txt", "\n".join(piece.captions).encode())
                    else:
                        add(archive, f"{piece.stem}.json", json.dumps({"captions": piece.captions}).encode())
    return []


def write_json_shards(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    return write_shards(folder, pieces, image="input.jpg", text="json")


def write_compressed_shards(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    write_shards(folder, pieces)
    for shard in sorted(folder.glob("*.tar")):
        shard.with_name(f"{shard.name}.gz").write_bytes(gzip.compress(shard.read_bytes(), 1))
        shard.unlink()
    return []


def write_folder(folder: Path, pieces: Sequence[Piece]) -> list[str]:
    for split, members in splits(pieces).items():
        lay(folder / split, members)
        for piece in members:
            (folder / split / f"{piece.stem}.txt").write_text("\n".join(piece.captions), encoding="utf-8")
    (folder / "README.txt").write_text("how this was made")
    return []


FORMATS: dict[str, tuple[str, Writer]] = {
    "Karpathy": ("karpathy", write_karpathy),
    "captions.txt": ("kaggle", write_kaggle),
    "captions.txt with comment numbers": ("kaggle", write_kaggle_flickr30k),
    "results.csv": ("flickr30k", write_results),
    "captions.csv": ("table", write_captions_csv),
    "token": ("token", write_token),
    "captions.tsv": ("captions_tsv", write_captions_tsv),
    "open_clip": ("open_clip", write_open_clip),
    "absolute paths": ("open_clip", write_absolute),
    "train.csv, val.csv": ("table", write_one_table_a_split),
    "several files, own columns": ("table", write_named_files),
    "COCO": ("coco", write_coco),
    "LAVIS": ("lavis", write_lavis),
    "metadata.jsonl": ("imagefolder", write_imagefolder_jsonl),
    "metadata.csv": ("imagefolder", write_imagefolder_csv),
    "metadata.parquet": ("imagefolder", write_imagefolder_parquet),
    "datasets": ("datasets", write_datasets),
    "datasets, a row a caption": ("datasets", write_datasets_by_caption),
    "shards": ("webdataset", write_shards),
    "shards of input.jpg and json": ("webdataset", write_json_shards),
    "tar.gz": ("webdataset", write_compressed_shards),
    "jpg and txt": ("folder", write_folder),
}
"""Layout → `data.format` that is found, and its writer."""


def png_as_jpeg(content: bytes) -> bytes:
    """Return a picture as JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").save(stream, "JPEG", quality=95)
    return stream.getvalue()
