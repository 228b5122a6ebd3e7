"""An index in a LanceDB table: the results of one in files, filters, updates, and a clear refusal without lancedb."""

import sys

import pytest
import toy_aligners
import toy_models

from clip_common.index import VectorIndexError
from edgeglass.aligner.index import Index

encoders = toy_aligners.encoders
saved = toy_aligners.saved
aligner = toy_aligners.aligner
collection = toy_aligners.collection
encoded = toy_aligners.encoded

pytest.importorskip("lancedb")


@pytest.fixture
def many(collection):
    """Over 300 items."""
    words = [f"{colour} {thing} {number}" for colour in ("red", "blue") for thing in "abcde" for number in range(30)]
    (collection / "many.txt").write_text("\n".join(words), encoding="utf-8")
    return collection


def test_it_finds_what_an_index_in_files_finds(aligner, many, tmp_path):
    files = Index.build(aligner, many, tmp_path / "files")
    table = Index.build(aligner, many, tmp_path / "table", store="lancedb")
    table = Index.open(tmp_path / "table")
    assert table.counts == files.counts
    assert len(files) == 313
    for query in ("blue c 7", "two green boxes", many / "2.png", many / "sounds" / "0.wav"):
        for settings in ({}, {"dim": 8}, {"dim": 8, "candidates": 60}, {"unique": 0.999}, {"modality": "text"}):
            expected, found = (index.search(query, k=8, **settings) for index in (files, table))
            assert [hit.similarity for hit in found] == pytest.approx([hit.similarity for hit in expected], abs=1e-5)
            for hit, other in zip(found, expected, strict=True):
                assert (hit.id, hit.text, hit.path) == (other.id, other.text, other.path) or hit.similarity == (
                    pytest.approx(other.similarity, abs=1e-6)
                )


def test_filters_and_settings(aligner, many, tmp_path):
    table = Index.build(aligner, many, tmp_path / "table", store="lancedb")
    hits = table.search("red a 1", k=20, where="path = 'many.txt' AND text LIKE 'blue%'")
    assert len(hits) == 20
    assert all(hit.text.startswith("blue") for hit in hits)
    for settings, words in (
        ({"where": "no such column = 1"}, "the search failed"),
        ({"dim": 5}, "columns for 32, 16, 8"),
        ({"first": "int8", "candidates": 20}, "float32 vectors only"),
        ({"candidates": 2}, "at least k"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            table.search("red", **settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="index in files"):
        table.explain()
    files = Index.build(aligner, many, tmp_path / "files")
    with pytest.raises(ValueError, match="store=lancedb"):
        files.search("red", where="path = 'a'")


def test_updates_encode_only_changes_and_shards_join(aligner, collection, tmp_path, encoded):
    Index.build(aligner, collection, tmp_path / "table", store="lancedb")
    encoded.update(dict.fromkeys(encoded, 0))
    toy_models.draw_image(collection / "new.png", seed=30)
    (collection / "0.png").unlink()
    table = Index.build(aligner, collection, tmp_path / "table", store="lancedb")
    assert encoded == {"image": 1, "text": 0, "audio": 0}
    parts = [tmp_path / "part 1", tmp_path / "part 2"]
    for number, part in enumerate(parts, start=1):
        Index.build(aligner, collection, part, shard=(number, 2), store="lancedb")
    joined = Index.merge(tmp_path / "joined", parts)
    for modality in joined.counts:
        assert joined.store.stamps(modality) == table.store.stamps(modality)
    with pytest.raises(VectorIndexError, match="store=lancedb, not files"):
        Index.build(aligner, collection, tmp_path / "table")


def test_without_lancedb_the_extra_is_named(aligner, collection, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ValueError, match=r"pip install 'edgeglass\[lance\]'$"):
        Index.build(aligner, collection, tmp_path / "table", store="lancedb")
    assert not (tmp_path / "table").exists()
