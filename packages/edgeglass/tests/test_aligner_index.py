"""Index: what it holds, search, updates without encoding twice, shards, kills, damage and other models."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import toy_aligners
import toy_models
from torch.nn.functional import normalize

from clip_common.index import VectorIndexError
from edgeglass.aligner import index as index_module
from edgeglass.aligner.aligner import Aligner
from edgeglass.aligner.index import Index

encoders = toy_aligners.encoders
saved = toy_aligners.saved
aligner = toy_aligners.aligner
collection = toy_aligners.collection
encoded = toy_aligners.encoded

ALL = {"image": 7, "text": 3, "audio": 3}


def contents(index: Index) -> dict[str, tuple]:
    """Stamp, vector and payload of every item, in the order of the index."""
    found = {}
    for modality in index.description.modalities:
        stamps = index.store.stamps(modality)
        vectors_ND = index.store.vectors(modality, list(stamps))
        payloads = index.store.payloads(modality, list(stamps))
        for (id, stamp), row_D, payload in zip(stamps.items(), vectors_ND, payloads, strict=True):
            found[f"{modality} {id}"] = stamp, row_D, payload
    return found


def check_equal(one: Index, other: Index) -> None:
    first, second = contents(one), contents(other)
    assert list(first) == list(second)
    for name, (stamp, row_D, payload) in first.items():
        assert (stamp, payload) == (second[name][0], second[name][2])
        torch.testing.assert_close(row_D, second[name][1], rtol=0, atol=1e-6)


def test_it_holds_images_sounds_and_lines_of_text(aligner, collection, tmp_path):
    index = Index.build(aligner, collection, tmp_path / "index")
    assert (index.counts, len(index), index.skipped, index.foreign) == (ALL, 13, {}, {})
    opened = Index.open(tmp_path / "index")
    check_equal(opened, index)
    found = contents(opened)
    assert {f"image {name}" for name in toy_aligners.ODD_NAMES} <= set(found)
    assert found["text notes.txt:3"][2] == {"text": toy_aligners.LINES[1], "file": "notes.txt"}
    files = sorted((collection / "sounds").iterdir())
    torch.testing.assert_close(opened.store.vectors("audio", ["sounds/1.wav"])[0], aligner.encode(audio=files)[1])


def test_a_search_ranks_all_modalities_by_their_cosine(aligner, collection, tmp_path):
    index = Index.build(aligner, collection, tmp_path / "index")
    rows = contents(index)
    for query in ("a red ball", collection / "2.png", [collection / "2.png", collection / "sounds" / "0.wav"]):
        vector_D = aligner.encode_query(*(query if isinstance(query, list) else [query]))
        for dim in (None, 8, 5):
            expected = {
                name: float(normalize(row_D[:dim], dim=0) @ normalize(vector_D[:dim], dim=0))
                for name, (_, row_D, _) in rows.items()
            }
            hits = index.search(query, k=6, dim=dim)
            assert [hit.similarity for hit in hits] == pytest.approx(
                sorted(expected.values(), reverse=True)[:6], abs=1e-5
            )
            for hit in hits:
                assert hit.similarity == pytest.approx(expected[f"{hit.modality} {hit.id}"], abs=1e-5)
    top = index.search(collection / "2.png", k=1)[0]
    assert (top.path, top.text, top.matches) == (index.root / "2.png", None, None)
    assert top.similarity == pytest.approx(1.0, abs=1e-5)
    words = index.search("the dog runs", k=1, modality="text")[0]
    assert (words.text, words.path) == ("the dog runs", index.root / "notes.txt")
    assert {hit.modality for hit in index.search("the dog runs", k=9, modality="audio")} == {"audio"}


def test_candidates_are_reranked_at_full_width(aligner, collection, tmp_path):
    index = Index.build(aligner, collection, tmp_path / "index")
    exact = index.search("two boxes", k=3)
    for first in ("float32", "int8", "binary"):
        hits = index.search("two boxes", k=3, dim=4, candidates=13, first=first)
        assert [hit.id for hit in hits] == [hit.id for hit in exact]
    shutil.copy(collection / "2.png", collection / "copy.png")
    index = Index.build(aligner, collection, tmp_path / "index")
    one, other = index.search(collection / "2.png", k=2, unique=0.9999)
    assert one.duplicates == 1  # which of the two is first depends on the last bit
    assert {one.id, other.id} != {"2.png", "copy.png"}


def test_what_is_unchanged_is_not_encoded_again(aligner, collection, tmp_path, encoded):
    def build() -> Index:
        encoded.update(dict.fromkeys(encoded, 0))
        return Index.build(aligner, collection, tmp_path / "index")

    build()
    assert encoded == ALL
    build()
    assert encoded == {"image": 0, "text": 0, "audio": 0}
    toy_models.draw_image(collection / "0.png", seed=50)
    os.utime(collection / "0.png", ns=(1, 1))
    (collection / "1.png").unlink()
    toy_models.write_sound(collection / "new.flac", seed=9)
    (collection / "notes.txt").write_text("a red ball\n\nanother line\n", encoding="utf-8")
    index = build()
    assert encoded == {"image": 1, "text": 1, "audio": 1}
    assert index.counts == {"image": 6, "text": 2, "audio": 4}
    shutil.rmtree(tmp_path / "index")
    check_equal_sets(index, build())


def check_equal_sets(one: Index, other: Index) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    for name, (stamp, row_D, _) in first.items():
        assert stamp == second[name][0]
        torch.testing.assert_close(row_D, second[name][1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [2, 5])
def test_joined_shards_equal_one_run(aligner, collection, tmp_path, count):
    whole = Index.build(aligner, collection, tmp_path / "whole")
    parts = [tmp_path / f"part {number}" for number in range(1, count + 1)]
    built = [Index.build(aligner, collection, part, shard=(n, count)) for n, part in enumerate(parts, start=1)]
    assert sum(map(len, built)) == 13
    joined = Index.merge(tmp_path / "joined", parts[::-1])
    check_equal(joined, whole)
    assert joined.description.shard is None
    again = Index.build(aligner, collection, tmp_path / "joined")
    check_equal(again, whole)


def refused(call, *words: str, error: type[Exception] = VectorIndexError) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


def test_parts_that_do_not_belong_together_are_refused(aligner, collection, tmp_path):
    one, two, whole = tmp_path / "one", tmp_path / "two", tmp_path / "whole"
    Index.build(aligner, collection, one, shard=(1, 2))
    Index.build(aligner, collection, two, shard=(2, 2))
    Index.build(aligner, collection, whole)
    refused(lambda: Index.merge(tmp_path / "out", [one]), "part 2/2 is missing")
    refused(lambda: Index.merge(tmp_path / "out", [one, one]), "both part 1/2")
    refused(lambda: Index.merge(tmp_path / "out", [one, whole]), "whole index")
    refused(lambda: Index.merge(tmp_path / "out", []), "no parts")
    refused(lambda: Index.build(aligner, collection, one), "shard=1/2, not none")
    refused(lambda: Index.build(aligner, collection, whole, shard=(1, 2)), "shard=none, not 1/2")
    refused(lambda: Index.build(aligner, collection, two, shard=(3, 2)), "3/2", error=ValueError)
    refused(lambda: Index.merge(whole, [one, two]), "exists", error=ValueError)


def test_unreadable_files_are_left_out_and_listed(aligner, collection, tmp_path):
    (collection / "broken.png").write_bytes((collection / "0.png").read_bytes()[:60])
    (collection / "silent.wav").write_bytes(b"")
    (collection / "latin.txt").write_bytes("été".encode("latin-1"))
    raw = Path(os.fsdecode(os.fsencode(collection) + b"/latin \xe9.png"))
    toy_models.draw_image(collection / "plain.png", seed=9).rename(raw)
    index = Index.build(aligner, collection, tmp_path / "index")
    assert set(index.skipped) == {"broken.png", "silent.wav", "latin.txt"}
    assert index.counts == ALL | {"image": 8}
    hit = Index.open(tmp_path / "index").search(raw, k=1, modality="image")[0]
    assert os.fsencode(hit.path) == os.fsencode(index.root) + b"/latin \xe9.png"
    with pytest.raises(ValueError, match=r"broken.png|silent.wav|latin.txt"):
        Index.build(aligner, collection, tmp_path / "strict", on_error="raise")


def test_folders_without_items_are_refused(aligner, encoders, collection, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder, words in ((empty, "holds no image or text file or sound"), (tmp_path / "nowhere", "not a folder")):
        refused(lambda folder=folder: Index.build(aligner, folder, tmp_path / "index"), words, error=ValueError)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    refused(lambda: Index.build(aligner, broken, tmp_path / "index"), "none of its 1 items", error=ValueError)
    deaf = toy_aligners.make_aligner(encoders, "encoders.audio.name=null")
    index = Index.build(deaf, collection, tmp_path / "deaf")
    assert (index.counts, index.foreign) == ({"image": 7, "text": 3}, {"audio": 3})
    refused(lambda: index.search("a dog", modality="audio"), "has image, text", error=ValueError)
    refused(lambda: index.search(collection / "sounds" / "0.wav"), "no encoder of audio", error=ValueError)
    refused(lambda: Index.build(deaf, collection / "sounds", tmp_path / "x"), "this model can encode", error=ValueError)
    refused(lambda: Index.build(deaf, collection, collection), "holds other files and no index")


def test_an_index_of_another_model_or_context_is_refused(aligner, encoders, saved, collection, tmp_path):
    Index.build(aligner, collection, tmp_path / "index")
    other = toy_aligners.make_aligner(encoders, "trainer.seed=1")
    full = toy_aligners.make_aligner(encoders, "audio.context=full")
    centred = Aligner.from_pretrained(saved, centre=True)
    for use in (
        lambda model: Index.build(model, collection, tmp_path / "index"),
        lambda model: Index.open(tmp_path / "index", aligner=model),
    ):
        refused(lambda use=use: use(other), "another model (toy, fingerprint", "index again")
        refused(lambda use=use: use(full), "audio.context=sound", "audio.context=full")
        refused(lambda use=use: use(centred), "another model")
    other.save_pretrained(tmp_path / "other")
    refused(lambda: Index.open(tmp_path / "index", model=tmp_path / "other").search("a"), "another model")
    refused(lambda: Index.build(aligner, collection / "sounds", tmp_path / "index"), "is the index of", "not of")


def test_a_moved_model_is_named_again(encoders, collection, tmp_path):
    toy_aligners.make_aligner(encoders).save_pretrained(tmp_path / "model")
    Index.build(Aligner.from_pretrained(tmp_path / "model"), collection, tmp_path / "index")
    assert Index.open(tmp_path / "index").search("a dog", k=1)
    shutil.move(tmp_path / "model", tmp_path / "moved")
    refused(lambda: Index.open(tmp_path / "index").search("a dog"), "does not exist", "--model", error=ValueError)
    assert Index.open(tmp_path / "index", model=tmp_path / "moved").search("a dog", k=1)


def test_damaged_files_are_refused_in_one_line(aligner, collection, tmp_path):
    Index.build(aligner, collection, tmp_path / "index")
    marker = tmp_path / "index" / "edgeglass.json"
    content = json.loads(marker.read_text())
    refused(lambda: Index.open(tmp_path / "nowhere"), "holds no index")
    for text in ("{", "[]", "{}", json.dumps(content | {"format": 0}), json.dumps(content | {"shard": [1]})):
        marker.write_text(text)
        refused(lambda: Index.open(tmp_path / "index"), "edgeglass.json is damaged")
    marker.write_text(json.dumps(content))
    segment = next((tmp_path / "index" / "vectors" / "text").glob("segment-*"))
    segment.write_bytes(segment.read_bytes()[:-40])
    refused(lambda: Index.open(tmp_path / "index"), "is damaged", str(tmp_path / "index"))


def embed_and_kill(saved: Path, collection: Path, out: Path, batches: int) -> None:
    """Build an index, saving after every batch, and kill this process after some batches."""
    index_module.SECONDS_BETWEEN_SAVES = -1.0
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) > batches:
            os.kill(os.getpid(), signal.SIGKILL)

    Index.build(Aligner.from_pretrained(saved), collection, out, batch_size=2, progress=progress)


def test_a_killed_build_goes_on_where_it_was_saved(aligner, saved, collection, tmp_path, encoded):
    process = multiprocessing.get_context("fork").Process(
        target=embed_and_kill, args=(saved, collection, tmp_path / "index", 5)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = Index.open(tmp_path / "index")
    assert kept.counts == {"image": 7, "text": 2, "audio": 0}
    Index.build(aligner, collection, tmp_path / "index")
    assert encoded == {"image": 0, "text": 1, "audio": 3}
    check_equal(Index.open(tmp_path / "index"), Index.build(aligner, collection, tmp_path / "whole"))
