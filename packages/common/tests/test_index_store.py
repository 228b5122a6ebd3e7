"""The items of an index: what they hold, how they are kept in step, and what is refused."""

import os
from pathlib import Path

import pytest
import torch
import toy_index as toy
from hypothesis import given
from hypothesis import strategies as st

from clip_common.errors import DataError
from clip_common.index import Changes, VectorIndex, VectorIndexError, scan_folder, stamp_file
from clip_common.index.compaction import choose_merge

ANY_TEXT = st.text(max_size=12) | st.binary(max_size=12).map(os.fsdecode)  # the latter: names of files


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "deep" / "toy.index"


def written(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name != ".lock")


# what an item holds


@given(ids=st.lists(ANY_TEXT, min_size=1, max_size=6, unique_by=os.fsencode), text=ANY_TEXT)
def test_any_text_comes_back_as_it_was_given(tmp_path_factory, ids, text):
    folder = tmp_path_factory.mktemp("index") / "toy"
    index = toy.index_in(folder)
    payloads = [[text, None, 1.5] for _ in ids]
    index.add(ids, toy.vectors_of(range(len(ids))), stamps=[text] * len(ids), payloads=payloads)
    index.save()
    opened = VectorIndex.open(folder)
    assert opened.ids == ids
    assert opened.stamps() == dict.fromkeys(ids, text)
    assert [opened.payload(id) for id in ids] == payloads
    assert torch.equal(opened.vectors(ids), toy.vectors_of(range(len(ids))))


def test_an_index_says_what_it_was_made_of(folder):
    collection = os.fsdecode(b"/photos/latin \xe9")
    index = VectorIndex(model="0" * 64, model_name="ViT-B-32", collection=collection, folder=folder)
    assert index.width == 0
    index.add(["a"], torch.ones(1, 7))
    index.save()
    opened = VectorIndex.open(folder)
    assert (opened.model, opened.model_name, opened.collection) == ("0" * 64, "ViT-B-32", collection)
    assert opened.width == 7


def test_a_vector_is_the_index_s_own():
    index, vectors_ND = toy.index_in(None), toy.vectors_of([1, 2])
    index.add(["a", "b"], vectors_ND)
    vectors_ND.zero_()
    assert torch.equal(index.vectors(["b", "a"]), toy.vectors_of([2, 1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_vectors_of_any_precision_are_kept_as_float32(dtype):
    index = toy.index_in(None)
    index.add(["a"], toy.vectors_of([1]).to(dtype))
    assert torch.equal(index.vectors(["a"]), toy.vectors_of([1]))


# in step with a collection


def test_what_is_new_changed_and_gone_is_told():
    index = toy.index_in(None)
    index.add(list("abc"), toy.vectors_of([1, 2, 3]), stamps=["1", "2", "3"])
    assert index.changes({"d": "4", "b": "2", "a": "9", "e": "5"}) == Changes(new=["d", "e"], changed=["a"], gone=["c"])


def test_files_of_a_folder_are_items(tmp_path):
    odd = os.fsdecode(b"latin \xe9.WAV")
    for name in ("b.wav", "sub/a.flac", "notes.txt", odd):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1234")
    os.utime(tmp_path / "b.wav", ns=(5, 1_718_000_000_000_000_001))
    stamps = scan_folder(tmp_path, suffixes={".wav", ".flac"}, what="sound")
    assert list(stamps) == sorted(["b.wav", "sub/a.flac", odd])
    assert stamps["b.wav"] == stamp_file(tmp_path / "b.wav") == "4 1718000000000000001"
    with pytest.raises(DataError, match=r"holds no image \(\.png\)"):
        scan_folder(tmp_path, suffixes=[".png"], what="image")
    with pytest.raises(DataError, match="is not a folder: give the folder of sounds"):
        scan_folder(tmp_path / "b.wav", suffixes=[".wav"], what="sound")


# what a save costs


def test_a_save_writes_what_changed_and_no_more(folder):
    index = toy.index_in(folder)
    index.add([str(row) for row in range(1000)], torch.randn(1000, 64))
    index.save()
    before, first = written(folder), files(folder)
    index = toy.index_in(folder)
    index.add(["new"], torch.randn(1, 64))
    index.save()
    index.delete(["17", "new"])
    index.save()
    assert set(first) - {"index.json"} <= set(files(folder))
    assert written(folder) - before < 5000  # of 256,000 bytes of vectors
    assert len(index) == 999


def test_saving_nothing_writes_nothing(folder):
    index = toy.index_in(folder)
    index.save()
    assert not folder.exists()
    toy.put(index, 1)
    index.save()
    state = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    index.save()
    toy.index_in(folder).save()
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == state


def test_vectors_are_mapped_from_disk_once_saved(folder):
    index = toy.index_in(folder)
    toy.put(index, 1, 2)
    index.save()
    for part in (*index.parts, *VectorIndex.open(folder).parts):
        (segment,) = folder.glob("*.safetensors")
        assert str(segment) in Path("/proc/self/maps").read_text()
        assert torch.equal(part, toy.vectors_of([1, 2]))


def test_many_saves_leave_few_segments_and_large_ones_are_not_written_again(folder):
    index = toy.index_in(folder)
    toy.put(index, *range(200))
    index.save()
    (large,) = folder.glob("*.safetensors")
    for number in range(200, 300):
        toy.put(index, number)
        index.save()
        assert len(files(folder)) <= 18  # 16 segments, a large one, index.json
    assert large.exists()
    assert index.ids == [str(number) for number in range(300)]
    assert toy.contents(toy.index_in(folder)) == toy.contents(index)


def test_deleted_rows_are_dropped_once_there_are_many(folder):
    index = toy.index_in(folder)
    toy.put(index, *range(100))
    index.save()
    index.delete([str(number) for number in range(25)])
    index.save()
    assert (len(index.deleted_rows), sum(map(len, index.parts))) == (25, 100)
    index.delete(["25"])
    index.save()
    assert (len(index.deleted_rows), sum(map(len, index.parts))) == (0, 74)
    assert len(files(folder)) == 2
    index.delete(index.ids)
    index.save()
    assert files(folder) == ["index.json"]
    assert len(toy.index_in(folder)) == 0
    toy.put(index, 7)
    index.save()
    assert toy.contents(toy.index_in(folder)) == {"7": ("stamp 7", toy.vectors_of([7])[0].tolist())}


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=60), limit=st.integers(1, 20))
def test_segments_before_a_merge_are_larger_than_all_after_them(sizes, limit):
    first = choose_merge(sizes, limit=limit)
    assert first == len(sizes) - 1 or len(sizes) > limit
    if len(sizes) > limit:
        assert all(size >= sum(sizes[place + 1 :]) for place, size in enumerate(sizes[:first]))


# what is refused


def test_an_index_of_another_model_or_collection_is_refused(folder):
    index = toy.index_in(folder)
    toy.put(index, 1)
    index.save()
    with pytest.raises(
        VectorIndexError, match=r"another model \(toy, fingerprint ffffffffffff….*eeeeeeeeeeee….*open it"
    ):
        VectorIndex.open_or_create(folder, **toy.ABOUT | {"model": "e" * 64})
    with pytest.raises(VectorIndexError, match="is the index of numbers, not of letters: name another folder"):
        VectorIndex.open_or_create(folder, **toy.ABOUT | {"collection": "letters"})
    with pytest.raises(VectorIndexError, match="another model"):
        index.check_model("e" * 64, name="other")


def test_what_cannot_be_added_or_deleted_is_refused_and_changes_nothing():
    index = toy.index_in(None)
    toy.put(index, 1, 2)
    before = toy.contents(index)
    bad = toy.vectors_of([3, 4])
    bad[1, 2] = torch.nan
    for match, call in {
        "'1' is in the index: update it": lambda: index.add(["1"], toy.vectors_of([1])),
        "given twice": lambda: index.update(["3", "3"], toy.vectors_of([3, 4])),
        "vector of '4' holds a NaN": lambda: index.add(["3", "4"], bad),
        r"shape \(1, 5\): expected \(1, 4\)": lambda: index.add(["3"], torch.zeros(1, 5)),
        "2 vectors for 1 ids, 1 stamps and 1 payloads": lambda: index.add(["3"], toy.vectors_of([3, 4])),
        "1 vectors for 1 ids, 2 stamps": lambda: index.add(["3"], toy.vectors_of([3]), stamps=["a", "b"]),
        "surrogates not allowed": lambda: index.add(["\ud800"], toy.vectors_of([3])),
        "'3' is not in the index: nothing is deleted": lambda: index.delete(["1", "3"]),
        "'3' is not in the index": lambda: index.vectors(["3"]),
        "in memory only": index.save,
    }.items():
        with pytest.raises(ValueError, match=match) as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="not JSON"):
        index.add(["3"], toy.vectors_of([3]), payloads=[Path()])
    assert toy.contents(index) == before
    assert index.width == toy.WIDTH


def test_an_absent_index_is_no_damaged_one(folder):
    with pytest.raises(FileNotFoundError, match="holds no index"):
        VectorIndex.open(folder)
