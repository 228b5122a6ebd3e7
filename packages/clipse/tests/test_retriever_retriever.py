"""Retriever: exact ranking, and an index in memory, stored, updated, damaged or of another model."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_photos as toy
from helpers.commands import refused
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from clip_common.index import VectorIndex, VectorIndexError
from clipse import RetrievalModel, Retriever
from clipse.data import DataError

ODD_NAMES = toy.ODD_NAMES
small = toy.small
draw = toy.draw
model = toy.model
photos = toy.photos
search = toy.search
encoded = toy.encoded
stored_indexes = toy.stored_indexes
snapshot = toy.snapshot
vectors_of = toy.vectors_of
index_of = toy.index_of
random_index = toy.random_index


@pytest.mark.parametrize("k", [1, 10, 200, 1000])
def test_the_nearest_are_those_of_a_full_sort(k):
    torch.manual_seed(0)
    index = random_index(images=200, width=16)
    query_D = functional.normalize(torch.randn(16), dim=0)
    hits = index.nearest(query_D, k)
    similarity_N = (index.vectors(index.ids) @ query_D).numpy()
    expected = np.argsort(-similarity_N)[:k]
    assert [hit.id for hit in hits] == [index.ids[row] for row in expected]
    assert [hit.similarity for hit in hits] == pytest.approx(similarity_N[expected].tolist(), abs=1e-6)


def test_equal_images_come_in_the_order_in_which_they_were_indexed_whatever_k():
    """Rows 2, 5 and 7 point at the query, row 4 away from it, the rest are at a right angle: all known by hand."""
    vectors_ND = torch.zeros(8, 4)
    vectors_ND[:, 1] = 1.0
    for row, first in {2: 1.0, 5: 1.0, 7: 1.0, 4: -1.0}.items():
        vectors_ND[row] = torch.tensor([first, 0.0, 0.0, 0.0])
    index = index_of([f"{row}.jpg" for row in range(8)], vectors_ND)
    order = [2, 5, 7, 0, 1, 3, 6, 4]
    for k in range(1, 9):
        hits = index.nearest(torch.tensor([1.0, 0.0, 0.0, 0.0]), k)
        assert [int(hit.id.removesuffix(".jpg")) for hit in hits] == order[:k]
    assert hits[-1].similarity == -1.0


def test_an_index_is_read_back_as_it_was_written(tmp_path):
    names = (*sorted(ODD_NAMES), os.fsdecode(b"zz latin \xe9.jpg"))
    torch.manual_seed(0)
    vectors_ND = functional.normalize(torch.randn(len(names), 8), dim=-1)
    given = index_of(names, vectors_ND, store=tmp_path / "index")
    given.save()
    found = VectorIndex.open(tmp_path / "index")
    assert (found.collection, found.model, found.model_name) == ("photos", given.model, "random")
    assert tuple(found.ids) == names
    assert found.stamps() == given.stamps() == {name: f"{row} {row + 1}" for row, name in enumerate(names)}
    assert torch.equal(found.vectors(names), vectors_ND)


def test_a_stored_index_holds_what_an_index_in_memory_holds(model, photos, tmp_path):
    in_memory = Retriever.from_pretrained(model).index(photos)
    store = tmp_path / "index"
    stored = Retriever.from_pretrained(model).index(photos, store=store)
    opened = Retriever.from_pretrained(model).open_index(store)
    for other in (stored, opened):
        assert other.paths == in_memory.paths
        assert other.gallery.ids == in_memory.gallery.ids
        torch.testing.assert_close(vectors_of(other), vectors_of(in_memory))
        found, expected = (which.search("a dog in the snow", k=4) for which in (other, in_memory))
        assert [hit.path for hit in found] == [hit.path for hit in expected]
        assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in expected], abs=1e-5)
    assert in_memory.paths == sorted(path for path in photos.rglob("*") if path.is_file())


def test_only_what_is_new_or_changed_is_encoded_and_what_is_gone_vanishes(model, photos, tmp_path, encoded):
    store = tmp_path / "index"
    Retriever.from_pretrained(model).index(photos, store=store)
    assert sum(encoded) == 9
    encoded.clear()
    written = snapshot(store)
    Retriever.from_pretrained(model).index(photos, store=store)
    assert (sum(encoded), snapshot(store)) == (0, written)

    draw(photos / "0.png", seed=100, size=(64, 64))  # changed
    draw(photos / "new" / "10.png", seed=10)
    (photos / "1.png").unlink()
    updated = Retriever.from_pretrained(model).index(photos, store=store)
    assert sum(encoded) == 2
    afresh = Retriever.from_pretrained(model).index(photos)
    assert updated.paths == afresh.paths
    assert photos / "1.png" not in updated.paths
    torch.testing.assert_close(vectors_of(updated), vectors_of(afresh), rtol=0, atol=1e-6)


def test_an_interrupted_index_goes_on_where_it_was(model, photos, tmp_path, encoded):
    store = tmp_path / "index"

    def stop(done: int, total: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Retriever.from_pretrained(model).index(photos, store=store, batch_size=3, progress=stop)
    assert len(VectorIndex.open(store)) == 6
    encoded.clear()
    assert len(Retriever.from_pretrained(model).index(photos, store=store, batch_size=3).paths) == 9
    assert encoded == [3]


def test_a_growing_index_is_written_now_and_then(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("clipse.retriever.retriever.SECONDS_BETWEEN_SAVES", 0.0)
    store, seen = tmp_path / "index", []

    def look(done: int, total: int) -> None:
        seen.append(len(VectorIndex.open(store)) if store.exists() else 0)

    Retriever.from_pretrained(model).index(photos, store=store, batch_size=3, progress=look)
    assert seen == [0, 3, 6]
    assert len(VectorIndex.open(store)) == 9


def test_an_index_of_another_model_is_refused_with_both_fingerprints(model, photos, tmp_path):
    store = tmp_path / "index"
    own = Retriever.from_pretrained(model).index(photos, store=store)
    other = Retriever(small(seed=1))
    for use in (lambda: other.open_index(store), lambda: other.index(photos, store=store)):
        with pytest.raises(VectorIndexError) as error:
            use()
        assert "\n" not in str(error.value)
        assert own.fingerprint[:12] in str(error.value)
        assert other.fingerprint[:12] in str(error.value)
    assert other.gallery is None


def test_models_with_the_same_image_tower_share_an_index(model, photos, tmp_path, encoded):
    store = tmp_path / "index"
    Retriever.from_pretrained(model).index(photos, store=store)
    encoded.clear()
    other = RetrievalModel.from_pretrained(model)
    with torch.no_grad():
        next(other.text_tower.parameters()).add_(1.0)
    Retriever(other).index(photos, store=store)
    assert encoded == []
    with torch.no_grad():
        next(other.image_tower.parameters()).add_(1.0)
    with pytest.raises(VectorIndexError):
        Retriever(other).open_index(store)


def test_the_index_of_another_folder_is_refused(model, photos, scenes, tmp_path):
    store = tmp_path / "index"
    Retriever.from_pretrained(model).index(photos, store=store)
    with pytest.raises(VectorIndexError, match="is the index of"):
        Retriever.from_pretrained(model).index(scenes / "Images", store=store)


def segment_of(store: Path) -> Path:
    return next(store.glob("segment-*.safetensors"))


def halved(store: Path) -> None:
    segment_of(store).write_bytes(segment_of(store).read_bytes()[: segment_of(store).stat().st_size // 2])


def no_index(store: Path) -> None:
    (store / "index.json").write_bytes(b"no index at all")


def of_other_parts(store: Path) -> None:
    parts = load_file(segment_of(store))
    save_file(parts | {"vectors": torch.zeros(1, 32)}, segment_of(store))


def of_weights(store: Path) -> None:
    save_file({"weight": torch.zeros(3)}, segment_of(store))


@pytest.mark.parametrize("damage", [halved, no_index, of_other_parts, of_weights])
def test_a_damaged_index_is_one_line_that_says_what_to_delete(search, tmp_path, damage):
    assert search("a dog")[0] == 0
    (store,) = stored_indexes(tmp_path)
    damage(store)
    refused(search("a dog"), str(store.relative_to(tmp_path)), "delete it")
    shutil.rmtree(store)
    assert search("a dog")[0] == 0


def test_an_index_of_the_version_before_is_refused(model, photos, tmp_path):
    file = tmp_path / "index.safetensors"
    parts = {"names": torch.tensor([97], dtype=torch.uint8), "vectors": torch.zeros(1, 32)}
    save_file(parts | {"stamps": torch.zeros(1, 2, dtype=torch.int64)}, file, metadata={"index": '{"format": 1}'})
    retriever = Retriever.from_pretrained(model)
    for use in (lambda: retriever.open_index(file), lambda: retriever.index(photos, store=file)):
        with pytest.raises(VectorIndexError, match=r"index\.safetensors is .*: delete it, and the items are encoded"):
            use()


def test_a_full_disk_leaves_the_former_index(model, photos, tmp_path, monkeypatch):
    store = tmp_path / "index"
    Retriever.from_pretrained(model).index(photos, store=store)
    before = snapshot(store)
    draw(photos / "new.png", seed=50)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clip_common.index.store.write_segment", full)
    with pytest.raises(OSError, match="No space left"):
        Retriever.from_pretrained(model).index(photos, store=store)
    assert snapshot(store) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "photos"]


def test_an_index_in_python_stops_at_an_image_that_cannot_be_read(model, photos):
    (photos / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        Retriever.from_pretrained(model).index(photos)
    retriever = Retriever.from_pretrained(model).index(photos, on_error="skip")
    assert list(retriever.skipped) == ["broken.jpg"]
    assert len(retriever.paths) == 9


def test_mistakes_in_python_are_told(model, photos):
    retriever = Retriever.from_pretrained(model)
    with pytest.raises(ValueError, match="index"):
        retriever.search("a dog")
    retriever.index(photos)
    with pytest.raises(ValueError, match="k=0"):
        retriever.search("a dog", k=0)
    with pytest.raises(ValueError, match="empty"):
        retriever.search(" ")


def test_an_image_turned_by_exif_is_found_by_its_upright_self(model, photos, tmp_path):
    upright = Image.open(photos / "0.png")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to see it upright
    turned.save(photos / "turned.png", exif=exif)
    best, second = Retriever.from_pretrained(model).index(photos).search(upright, k=2)
    assert {best.path.name, second.path.name} == {"0.png", "turned.png"}
    assert second.similarity == pytest.approx(1.0, abs=1e-6)
