"""`edgeglass embed`, `join`, `search` and `calibrate`."""

import os
from functools import partial
from pathlib import Path

import pytest
import toy_aligners
import toy_models
from helpers.commands import call, refused, succeeded

from edgeglass.aligner.index import Index
from edgeglass.cli.main import app

encoders = toy_aligners.encoders
saved = toy_aligners.saved
aligner = toy_aligners.aligner
collection = toy_aligners.collection


@pytest.fixture
def edgeglass(capsys):
    return partial(call, app, capsys)


@pytest.fixture
def index(aligner, collection, tmp_path) -> Path:
    return Index.build(aligner, collection, tmp_path / "index").folder


def test_a_folder_is_indexed_in_parts_joined_and_searched(edgeglass, saved, collection, tmp_path):
    (collection / "broken [1].png").write_bytes(b"no picture")
    parts = [tmp_path / "part 1", tmp_path / "part 2"]
    for number, part in enumerate(parts, start=1):
        printed = succeeded(edgeglass("embed", saved, collection, "--out", part, "--shard", f"{number}/2"))
    printed += succeeded(edgeglass("embed", saved, collection, "--out", tmp_path / "whole"))
    assert "7 images, 3 texts, 3 sounds of " in printed
    assert "broken [1].png: not a readable image" in printed
    assert "7 images, 3 texts, 3 sounds in" in succeeded(edgeglass("join", tmp_path / "index", *parts))
    whole, joined = (succeeded(edgeglass("search", tmp_path / name, "a", "red", "ball")) for name in ("whole", "index"))
    assert whole == joined
    rows = [line.split() for line in whole.splitlines() if line.split()[:1] == ["1"]]
    assert rows[0][2] in ("image", "text", "audio")
    refused(edgeglass("embed", saved, collection, "--out", tmp_path / "whole", "--shard", "1/2"), "name another folder")
    for shard in ("3", "3/2", "0/2", "a/b"):
        refused(edgeglass("embed", saved, collection, "--out", tmp_path / "x", "--shard", shard), "expected i/n")


def test_queries_are_words_images_and_sounds(edgeglass, index, collection, tmp_path):
    image, sound = collection / "2.png", collection / "sounds" / "1.wav"
    assert "2.png" in succeeded(edgeglass("search", index, image, "--k", 1))
    assert "1.wav" in succeeded(edgeglass("search", index, "--audio", sound, "--k", 1, "--modality", "audio"))
    both = succeeded(edgeglass("search", index, image, "--audio", sound, "--modality", "text"))
    other = succeeded(edgeglass("search", index, sound, image, "--modality", "text"))
    assert both.partition("similarity")[2] == other.partition("similarity")[2]
    page = tmp_path / "page.html"
    printed = succeeded(edgeglass("search", index, "the dog runs", "--unique", "--html", page))
    assert "the dog runs" in page.read_text(encoding="utf-8")
    assert str(page) in printed
    refused(edgeglass("search", index), "nothing to search for")
    refused(edgeglass("search", index, "nowhere.png"), "nowhere.png: no such file")
    refused(edgeglass("search", index, "--audio", "nowhere.wav"), "nowhere.wav: no such file")
    refused(edgeglass("search", tmp_path, "a dog"), "holds no index")
    refused(edgeglass("search", index, "a dog", "--html", collection / "notes.txt"), "no page of edgeglass search")


def test_recall_is_printed_on_demand_and_for_untrained_widths(edgeglass, index):
    printed = succeeded(edgeglass("search", index, "a dog", "--dim", 8, "--candidates", 13, "--explain"))
    assert "recall@10 of exact search in images: 1.000" in printed
    assert "not trained" not in printed
    printed = succeeded(edgeglass("search", index, "a dog", "--dim", 5, "--k", 2))
    assert "the model was not trained at width 5, but at 32, 16, 8" in printed
    assert "recall@2 of exact search in sounds" in printed
    refused(edgeglass("search", index, "a dog", "--dim", 33), "33")
    refused(edgeglass("search", index, "a dog", "--first", "int8"), "candidates")
    refused(edgeglass("search", index, "a dog", "--candidates", 3), "candidates=3")


def test_a_calibrated_search_says_that_nothing_is_here(edgeglass, encoders, collection, tmp_path):
    toy_aligners.make_aligner(encoders).save_pretrained(tmp_path / "model")
    index = tmp_path / "index"
    succeeded(edgeglass("embed", tmp_path / "model", collection, "--out", index))
    absent = tmp_path / "absent.txt"
    absent.write_text("\n".join(f"query {number}" for number in range(40)), encoding="utf-8")
    printed = succeeded(
        edgeglass("calibrate", tmp_path / "model", index, "--absent", absent, "--present", collection / "notes.txt")
    )
    assert "text → image" in printed
    assert "fitted to 40 absent queries" in printed
    none = succeeded(edgeglass("search", index, "query 3", "--modality", "image"))
    assert "nothing here" in none
    assert none.count("no match") == 7
    found = succeeded(edgeglass("search", index, toy_aligners.LINES[0], "--modality", "text"))
    assert "nothing here" not in found
    page = tmp_path / "page.html"
    succeeded(edgeglass("search", index, "query 3", "--modality", "image", "--html", page))
    absent.write_text("one\ntwo\n")
    refused(edgeglass("calibrate", tmp_path / "model", index, "--absent", absent), "2 absent queries", "at least 38")
    refused(edgeglass("calibrate", tmp_path / "model", index, "--absent", "nowhere.txt"), "no such file of queries")


def test_a_damaged_folder_of_any_name_is_one_line(edgeglass, saved, collection, tmp_path):
    raw = Path(os.fsdecode(os.fsencode(tmp_path) + b"/photos \xe9"))
    collection.rename(raw)
    toy_models.draw_image(raw / "x.png", seed=3)
    assert "8 images" in succeeded(edgeglass("embed", saved, raw, "--out", tmp_path / "index"))
    assert "x.png" in succeeded(edgeglass("search", tmp_path / "index", raw / "x.png", "--k", 2))
    refused(edgeglass("embed", tmp_path, raw, "--out", tmp_path / "i"), "neither a run folder nor a saved model")
    refused(edgeglass("embed", saved, tmp_path / "nowhere", "--out", tmp_path / "i"), "not a folder")
