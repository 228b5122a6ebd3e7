"""Indexes made apart and merged: the same as one made at once, whatever the order, or an error and nothing written."""

import itertools
from pathlib import Path

import pytest
import torch
import toy_index as toy
from helpers.files import full_disk

from clip_common.index import VectorIndex, VectorIndexError, merge_indexes

NAMES = [f"{letter}/{number:03d} 雪.jpg" for number in range(20) for letter in "cab"]
VECTORS = toy.nested_vectors(len(NAMES), 24, seed=0)


def stamps_of(rows: list[int]) -> list[str]:
    return [f"stamp {row}" for row in rows]


def payloads_of(rows: list[int]) -> list[dict[str, int] | None]:
    return [{"row": row} if row % 2 else None for row in rows]


def save_rows(folder: Path, rows: list[int], *, about: dict[str, str] | None = None) -> Path:
    """Save an index of some of the items, in two segments."""
    index = VectorIndex(**(about or toy.ABOUT), folder=folder)
    for some in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        texts = {
            "stamps": [f"stamp {row}" for row in some],
            "payloads": [{"row": row} if row % 2 else None for row in some],
        }
        index.add([NAMES[row] for row in some], VECTORS[some], **texts)
        index.save()
    return folder


def files_of(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def everything(index: VectorIndex) -> list[tuple[str, str, object]]:
    stamps = index.stamps()
    return [(id, stamps[id], index.payload(id)) for id in index.ids]


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    return [save_rows(tmp_path / f"shard {shard}", list(range(shard, len(NAMES), 3))) for shard in range(3)]


def test_shards_made_apart_and_merged_are_one_run(tmp_path, shards):
    whole = VectorIndex(**toy.ABOUT, folder=tmp_path / "whole")
    rows = sorted(range(len(NAMES)), key=NAMES.__getitem__)
    whole.add([NAMES[row] for row in rows], VECTORS[rows], stamps=stamps_of(rows), payloads=payloads_of(rows))
    whole.save()
    whole = VectorIndex.open(tmp_path / "whole")
    query_QD, before = toy.nested_vectors(7, 24, seed=1), [files_of(shard) for shard in shards]
    for number, order in enumerate(itertools.permutations(shards)):
        merged = merge_indexes(tmp_path / f"merged {number}", order)
        assert merged.folder == tmp_path / f"merged {number}"
        assert (merged.model, merged.model_name, merged.collection) == (whole.model, whole.model_name, whole.collection)
        assert everything(merged) == everything(whole)
        assert merged.ids == sorted(NAMES)
        assert torch.equal(merged.vectors(merged.ids), whole.vectors(whole.ids))
        assert merged.nearest_to_each(query_QD, 9) == whole.nearest_to_each(query_QD, 9)
        options = {"dim": 8, "candidates": 20}
        assert merged.nearest_to_each(query_QD, 9, **options) == whole.nearest_to_each(query_QD, 9, **options)
    assert [files_of(shard) for shard in shards] == before


def test_a_merged_index_goes_on_as_any_other(tmp_path, shards):
    merged = merge_indexes(tmp_path / "merged", shards)
    merged.delete([NAMES[0]])
    merged.update([NAMES[1]], VECTORS[:1])
    merged.save()
    reopened = VectorIndex.open(tmp_path / "merged")
    assert len(reopened) == len(NAMES) - 1
    assert torch.equal(reopened.vectors([NAMES[1]]), VECTORS[:1])


def test_deleted_items_are_left_out(tmp_path, shards):
    index = VectorIndex.open(shards[0])
    index.delete([NAMES[0], NAMES[3]])
    index.save()
    merged = merge_indexes(tmp_path / "merged", shards)
    assert merged.ids == sorted(set(NAMES) - {NAMES[0], NAMES[3]})
    assert len(merged.deleted_rows) == 0


def test_an_item_in_two_sources_is_kept_once_if_it_is_the_same(tmp_path, shards):
    both = save_rows(tmp_path / "both", [0, 1, 2, 3])
    assert merge_indexes(tmp_path / "merged", [*shards, both, both]).ids == sorted(NAMES)


@pytest.mark.parametrize("what", ["vector", "stamp", "payload"])
def test_an_item_that_differs_between_sources_is_refused(tmp_path, shards, what):
    other = VectorIndex(**toy.ABOUT, folder=tmp_path / "other")
    vector = VECTORS[1:2] + (what == "vector")
    stamp, payload = "new" if what == "stamp" else "stamp 1", {"row": 2 if what == "payload" else 1}
    other.add([NAMES[1]], vector, stamps=[stamp], payloads=[payload])
    other.save()
    refuse(tmp_path, [*shards, tmp_path / "other"], match="differs between")


@pytest.mark.parametrize(
    ("about", "match"),
    [
        ({"model": "e" * 64, "model_name": "other"}, r"has another model \(other, eeeeeeeeeeee…\) than .* \(toy, ffff"),
        ({"collection": "letters"}, r"has another collection \(letters\) than .* \(numbers\)"),
    ],
)
def test_an_index_of_something_else_is_refused(tmp_path, shards, about, match):
    refuse(tmp_path, [*shards, save_rows(tmp_path / "other", [0, 1], about=toy.ABOUT | about)], match=match)


def test_an_index_of_another_width_is_refused(tmp_path, shards):
    narrow = toy.index_in(tmp_path / "narrow")
    toy.put(narrow, 1)
    narrow.save()
    refuse(tmp_path, [*shards, tmp_path / "narrow"], match=r"another width \(4\) than .* \(24\)")


def refuse(tmp_path: Path, sources: list[Path], *, match: str) -> None:
    with pytest.raises(VectorIndexError, match=match) as error:
        merge_indexes(tmp_path / "merged", sources)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_folders_that_cannot_be_used_are_refused(tmp_path, shards):
    with pytest.raises(ValueError, match="no indexes to merge"):
        merge_indexes(tmp_path / "merged", [])
    with pytest.raises(FileNotFoundError, match="holds no index"):
        merge_indexes(tmp_path / "merged", [*shards, tmp_path / "nothing"])
    with pytest.raises(ValueError, match="exists"):
        merge_indexes(shards[0], shards)


def test_a_full_disk_leaves_nothing(tmp_path, shards):
    before = sorted(tmp_path.iterdir())
    with full_disk(4096), pytest.raises(OSError, match="too large"):  # the vectors alone are larger
        merge_indexes(tmp_path / "merged", shards)
    assert sorted(tmp_path.iterdir()) == before
