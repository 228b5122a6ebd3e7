"""Calibration of "nothing here": hand-checked thresholds, rates on made-up vectors, storage, damage."""

import json

import pytest
import torch
import toy_aligners
from torch.nn.functional import normalize

from edgeglass.aligner.aligner import Aligner
from edgeglass.aligner.calibration import calibrate, fit_threshold, read_queries
from edgeglass.aligner.index import Index
from edgeglass.aligner.thresholds import Calibration, Rate, Threshold, measure_level, read_calibration

encoders = toy_aligners.encoders
collection = toy_aligners.collection

ABSENT = [f"query {number}" for number in range(60)]


@pytest.fixture
def index(encoders, collection, tmp_path) -> Index:
    toy_aligners.make_aligner(encoders).save_pretrained(tmp_path / "model")
    return Index.build(Aligner.from_pretrained(tmp_path / "model"), collection, tmp_path / "index")


def test_the_threshold_is_the_corrected_quantile():
    value, accepted_Q = fit_threshold(torch.arange(39.0), target=0.05)
    assert value == pytest.approx(37.0, abs=1e-4)  # the 38th of 39: ceil(40 · .95)
    assert accepted_Q.dtype == torch.bool
    assert fit_threshold(torch.arange(38.0), target=0.05)[0] > 37.0  # the largest: ceil(39 · .95) = 38


def test_the_next_absent_query_is_accepted_at_most_as_often_as_aimed_at():
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(400):
        absent_Q = torch.randn(99, generator=generator)
        value, accepted_Q = fit_threshold(absent_Q, target=0.1)
        fresh = (torch.randn(200, generator=generator) > value).double().mean()
        shares.append((float(fresh), float(accepted_Q.double().mean())))
    fresh, measured = torch.tensor(shares).mean(dim=0).tolist()
    assert fresh == pytest.approx(0.1, abs=0.01)
    assert measured == pytest.approx(0.1, abs=0.02)


def test_the_level_is_a_quarter_of_the_mean_of_the_nearest():
    background_BD = normalize(torch.tensor([[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 5), dim=1)
    query_QD = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    level_Q = measure_level(query_QD, background_BD, dim=2)
    assert level_Q.tolist() == pytest.approx([0.25, 0.25 * (5 * 0.8 + 5 * 0.6) / 10])
    assert measure_level(query_QD, background_BD, dim=1).tolist() == pytest.approx([0.25, 0.25])
    assert measure_level(query_QD, None, dim=2).tolist() == [0, 0]
    rate = Rate(0.0, 0.0, 0.1, 9)
    found = Calibration(
        "model", 0.05, {"text": 2}, {"text-text@2": Threshold(0.5, rate, None)}, {"text": background_BD}
    )
    cuts = [found.find_cut(query_D, query="text", modality="text", dim=2) for query_D in query_QD]
    assert cuts == pytest.approx([0.75, 0.675])
    assert found.find_cut(query_QD[0], query="audio", modality="text", dim=2) is None
    assert found.find_cut(query_QD[0], query="text", modality="text", dim=1) is None


@pytest.mark.parametrize("with_background", [False, True])
def test_hits_are_marked_by_thresholds_that_are_stored_with_the_model(index, collection, with_background):
    assert index.search("a dog")[0].matches is None
    background = Index.open(index.folder) if with_background else None
    found = calibrate(index, absent=ABSENT, present=toy_aligners.LINES, background=background)
    assert set(found.thresholds) == {f"text-{modality}@{dim}" for modality in index.counts for dim in (32, 16, 8)}
    assert found.thresholds["text-text@32"].true_accept.queries == 3
    opened = Index.open(index.folder)
    accepted = dict.fromkeys((None, 8), 0)
    for dim in accepted:
        for query in ABSENT:
            hits = opened.search(query, k=3, dim=dim, modality="image")
            assert [hit.matches for hit in hits] == [hit.similarity > hit.cut for hit in hits]
            accepted[dim] += any(hit.matches for hit in hits)
    # of 60 fitted queries, those above the 58th: ceil(61 · .95)
    assert accepted == {None: 2, 8: 2}
    assert opened.search(collection / "1.png", k=1)[0].matches is None
    assert opened.search("a dog", k=1, dim=5)[0].matches is None
    assert opened.search("a dog", k=1, dim=5, candidates=9)[0].matches is not None


def test_queries_of_several_items_have_thresholds_of_their_own(index, collection):
    pairs = [[collection / f"{number % 4}.png", collection / "sounds" / f"{number % 3}.wav"] for number in range(38)]
    found = calibrate(index, absent=pairs, dims=[32])
    assert set(found.thresholds) == {f"image+audio-{modality}@32" for modality in index.counts}


def test_what_cannot_be_calibrated_is_one_line(index, encoders, collection, tmp_path):
    cases = {
        "2 absent queries of kind text: false accepts of 0.05 need at least 38": {"absent": ["a", "b"]},
        "nothing to calibrate with": {"absent": []},
        "target=1": {"absent": ABSENT, "target": 1},
    }
    for words, settings in cases.items():
        with pytest.raises(ValueError, match=words):
            calibrate(index, **settings)
    unsaved = Index.build(toy_aligners.make_aligner(encoders), collection, tmp_path / "unsaved")
    with pytest.raises(ValueError, match="save it first"):
        calibrate(unsaved, absent=ABSENT)


def test_damaged_or_foreign_thresholds_are_refused(index):
    calibrate(index, absent=ABSENT)
    folder = index.aligner.folder
    file = folder / "calibration.json"
    content = json.loads(file.read_text())
    cases = {
        "is damaged": ["{", "[]", "{}", json.dumps(content | {"background": "0"}), json.dumps(content | {"items": 1})],
        "another model": [json.dumps(content | {"model": "0"})],
    }
    for words, texts in cases.items():
        for text in texts[:4]:
            file.write_text(text)
            with pytest.raises(ValueError, match=words) as caught:
                Index.open(index.folder).search("a dog")
            assert "\n" not in str(caught.value)
    file.write_text(json.dumps(content))
    (folder / "calibration.safetensors").unlink()
    with pytest.raises(ValueError, match="is damaged"):
        read_calibration(folder, model=content["model"])


def test_queries_are_read_from_texts_files_and_folders(collection):
    found = read_queries([collection / "notes.txt", collection / "sounds", collection / "1.png"])
    assert found == [*toy_aligners.LINES, *sorted((collection / "sounds").iterdir()), collection / "1.png"]
    with pytest.raises(ValueError, match="no such file of queries"):
        read_queries([collection / "nowhere.txt"])
