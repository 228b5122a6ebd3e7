"""The four captioned images in every format of clipse: caption files and webdataset shards."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import toy_captions
from toy_captions import CAPTIONS, jpeg

from clipse.data import DataError, load_captions


def write_shards(folder: Path) -> None:
    names = list(CAPTIONS)
    for shard, members in (("train-0.tar", names[:2]), ("val-0.tar", names[2:3]), ("test-0.tar", names[3:])):
        with tarfile.open(folder / shard, "w") as archive:
            for number, name in enumerate(members):
                stem = name.removesuffix(".jpg")
                texts = "\n".join(CAPTIONS[name]) if number else json.dumps({"captions": CAPTIONS[name]})
                contents = {f"{stem}.jpg": jpeg(), f"{stem}.{'txt' if number else 'json'}": texts.encode()}
                for member, content in contents.items():
                    add(archive, member, content)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


WRITERS = {**toy_captions.WRITERS, "webdataset": write_shards}


def message(root: Path, **options: str | list[str]) -> str:
    with pytest.raises(DataError) as error:
        load_captions(root, **options)
    text = str(error.value)
    assert "\n" not in text
    return text
