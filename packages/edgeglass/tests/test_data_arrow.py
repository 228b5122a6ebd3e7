"""Images and sounds inside parquet files and folders of `datasets`: read by row, whatever the file holds."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy_samples as toy
from torch.utils.data import DataLoader, Dataset
from toy_samples import CAPTIONS, IMAGES, SOUNDS, content_of, read, refusal

from clip_common.features.jobs import hash_source, name_source
from edgeglass.data.parquet import read_parquet

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize("way", ["parquet of bytes", "parquet of structs", "datasets"])
def test_bytes_are_read_by_row_in_threads_and_in_other_processes(tmp_path, way):
    toy.WRITERS[way](tmp_path)
    samples = [sample for split in read(tmp_path).splits.values() for sample in split]
    sources = [source for sample in samples for source in (sample.image, sample.audio)]
    assert len(set(sources)) == 8
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(content_of, sources * 20))
    assert contents == [content_of(source) for source in sources] * 20
    assert set(contents) == set(IMAGES.values()) | set(SOUNDS.values())
    assert [pickle.loads(pickle.dumps(source)) for source in sources] == sources
    assert "row 0, " in name_source(sources[0])


@pytest.mark.parametrize("way", ["parquet of bytes", "datasets"])
def test_bytes_are_read_in_the_worker_processes_of_a_loader(tmp_path, way):
    toy.WRITERS[way](tmp_path)
    sources = [sample.image for split in read(tmp_path).splits.values() for sample in split]
    before = [content_of(source) for source in sources]  # the workers are forked with open tables
    loader = DataLoader(Contents(sources), num_workers=2, batch_size=None)
    assert list(loader) == before


class Contents(Dataset):
    """The bytes of each source."""

    def __init__(self, sources):
        self.sources = sources

    def __len__(self):
        return len(self.sources)

    def __getitem__(self, index):
        return content_of(self.sources[index])


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_with_bytes_with_a_path_and_with_neither(tmp_path, statistics):
    toy.write_media(tmp_path)
    images = [{"bytes": toy.png(), "path": "x.png"}, {"bytes": None, "path": "images/c.png"}, None]
    table = pa.table(
        {"image": pa.array(images, STRUCT), "caption": ["one", "two", "three"], "split": ["test"] * 3},
    )
    pq.write_table(table, tmp_path / "set.parquet", write_statistics=statistics)
    first, second, third = read(tmp_path).splits["test"]
    assert content_of(first.image) == toy.png()
    assert second.image == tmp_path / "images" / "c.png"
    assert third.modalities == ("text",)
    assert third.name.endswith("set.parquet, row 2")


@pytest.mark.parametrize("statistics", [True, False])
def test_bytes_that_some_rows_lack(tmp_path, statistics):
    table = pa.table({"image": pa.array([None, toy.png(1), None, toy.png(2)], pa.binary()), "text": list("abcd")})
    pq.write_table(table, tmp_path / "set.parquet", write_statistics=statistics, row_group_size=2)
    samples = list(read_parquet(tmp_path))
    assert [sample.has("image") for sample in samples] == [False, True, False, True]
    assert [content_of(samples[row].image) for row in (1, 3)] == [toy.png(1), toy.png(2)]
    assert "row 3, image" in samples[3].image.name


def test_captions_as_categories_and_large_strings(tmp_path):
    toy.write_media(tmp_path)
    table = pa.table(
        {
            "image": pa.array(["images/c.png", "images/d.png"]).dictionary_encode(),
            "captions": pa.array([["one", "two"], ["three"]], pa.large_list(pa.large_string())),
        }
    )
    pq.write_table(table, tmp_path / "train.parquet")
    assert [sample.captions for sample in read(tmp_path).splits["train"]] == [("one", "two"), ("three",)]


def test_addresses_of_images_as_pixmo_has_them_are_not_fetched(tmp_path):
    table = pa.table(
        {"image_url": ["https://example.org/1.jpg"], "caption": ["a dog"], "transcripts": [["well, a dog"]]}
    )
    pq.write_table(table, tmp_path / "train.parquet")
    text = refusal(tmp_path)
    assert "row 0: an image is given by a URL" in text
    assert "save the files and give their paths as image" in text
    toy.write_media(tmp_path)
    pq.write_table(table.append_column("image", pa.array(["images/c.png"])), tmp_path / "train.parquet")
    (sample,) = read(tmp_path).splits["train"]
    assert (sample.image, sample.captions) == (tmp_path / "images" / "c.png", ("a dog",))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": [1]}, "none of the columns image,"),
        ({"image": [1], "text": ["a"]}, "column image is of type int64, expected paths, bytes, or a struct"),
        ({"image": [[1, 2]], "text": ["a"]}, "column image is of type list<"),
        ({"image": ["c.png"], "text": [3]}, "row 0: expected captions as texts, got 3"),
        ({"image": pa.array([None], pa.string()), "text": pa.array([None], pa.string())}, "row 0: neither an image"),
    ],
)
def test_columns_of_other_types(tmp_path, columns, said):
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    assert said in refusal(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 200], ids=["empty", "tiny", "half"])
def test_a_parquet_file_that_is_cut_off(tmp_path, keep):
    toy.write_parquet_of_bytes(tmp_path)
    file = tmp_path / "set.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    assert "set.parquet: not a readable parquet file" in refusal(tmp_path)


def test_a_parquet_file_that_changes_after_it_was_listed(tmp_path):
    toy.write_parquet_of_bytes(tmp_path)
    (sample, *_) = read(tmp_path).splits["train"]
    before = content_of(sample.image)
    table = pa.Table.from_pylist([{"image": b"new", "audio": b"new", "captions": ["a"]}])
    pq.write_table(table, tmp_path / "set.parquet")
    assert content_of(sample.image) == b"new" != before
    file = tmp_path / "set.parquet"
    file.write_bytes(file.read_bytes()[:50])
    assert isinstance(hash_source(sample.image), OSError)
    file.unlink()
    assert isinstance(hash_source(sample.image), OSError)


def test_a_datasets_folder_of_one_part_with_a_column_of_splits(tmp_path):
    toy.write_media(tmp_path)
    lines = [row | {key: str(tmp_path / row[key]) for key in ("image", "audio")} for row in toy.rows()]
    datasets.Dataset.from_list(lines).save_to_disk(str(tmp_path / "saved"))
    samples = read(tmp_path / "saved")
    assert [len(split) for split in samples.splits.values()] == [2, 1, 1]
    assert samples.splits["val"][0].audio == tmp_path / "sounds" / "c.wav"


def test_a_datasets_folder_that_leaves_open_which_column_holds_captions(tmp_path):
    columns = {"photo": [{"bytes": toy.png(), "path": None}], "title": ["a"], "alt": ["b"]}
    part = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
    part.save_to_disk(str(tmp_path / "saved"))
    assert "columns title, alt could each be the captions: rename one to captions" in refusal(tmp_path / "saved")
    part.rename_column("alt", "text").save_to_disk(str(tmp_path / "renamed"))
    assert "no split" not in str(read(tmp_path / "renamed"))


def test_a_datasets_folder_with_an_unknown_split_or_without_its_files(tmp_path):
    toy.write_datasets(tmp_path / "saved")
    for file in (tmp_path / "saved" / "train").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    assert "not a readable folder of Hugging Face datasets" in refusal(tmp_path / "saved")
    part = datasets.Dataset.from_dict({"caption": ["a"]})
    datasets.DatasetDict({"everything": part}).save_to_disk(str(tmp_path / "other"))
    assert "unknown split 'everything'" in refusal(tmp_path / "other")


def test_the_features_of_rows_are_those_of_files(tmp_path):
    from clip_common.backbones import load_clip
    from clip_common.features import FeatureCache

    for folder, write in (("files", toy.write_jsonl), ("rows", toy.write_parquet_of_structs)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
    of_files, of_rows = (
        {sample.captions: sample.image for split in read(tmp_path / folder).splits.values() for sample in split}
        for folder in ("files", "rows")
    )
    encoder, cache = load_clip("tiny").image, FeatureCache(tmp_path / "cache")
    encoder.tower.freeze_trunk()
    expected = cache.features(encoder, [of_files[captions] for captions in CAPTIONS.values()])
    assert cache.features(encoder, [of_rows[captions] for captions in CAPTIONS.values()]).equal(expected)
