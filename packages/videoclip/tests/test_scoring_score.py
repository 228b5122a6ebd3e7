"""`videoclip test`: its own test subjects, under other maps, another set; and the leaks that it refuses."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from clip_common.errors import DataError
from clip_common.synthetic import write_walking
from clip_common.video import write_video
from videoclip import score
from videoclip.data.decoding import read_frames
from videoclip.data.manifest import read_manifest, write_manifest

SOURCE = [
    *(f"test/retrieval_r{k}_{way}" for k in (1, 5) for way in ("v2a", "a2v")),
    *(f"test/align_sim_{name}" for name in ("correct", "incorrect", "gap", "corr")),
]
"""What the description says is logged."""


@pytest.fixture
def run(trained, small, tmp_path) -> Path:
    """A trained run of its own."""
    return Path(shutil.copytree(trained("model.map_guided=true", "trainer.max_epochs=3"), tmp_path / "run"))


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Another set, of other people with the same names."""
    folder = tmp_path_factory.mktemp("others") / "others"
    return write_walking(folder, subjects=9, clips_per_subject=1, seed=7, size=32, fps=8, folds=3)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_test_subjects_are_scored_and_logged_by_the_names_of_the_source(run, pictures):
    tested = score(run)
    row = rows(run / "metrics.csv")[-1]
    assert row["phase"] == "test"
    for name in SOURCE:
        key = name.removeprefix("test/")
        if key in tested.evaluation.metrics:  # without an incorrect clip there is no gap
            assert float(row[name]) == pytest.approx(tested.evaluation.metrics[key])
    assert all(row[name] for name in SOURCE[:4])
    assert all(row[f"test/{name}"] for name in ("accuracy", "macro_f1", "majority_accuracy", "subject_accuracy"))
    kept = json.loads((run / "result.json").read_text())
    assert kept["test"]["metrics"] == pytest.approx(tested.evaluation.metrics)
    assert kept["test"]["overrides"] == []
    names = {"predictions-test.npz", "result.json", "test-confusion.png", "test-similarity.png"}
    assert names <= {file.name for file in tested.files}
    assert all(file.stat().st_size for file in tested.files)


def test_the_figures_are_sklearns_on_the_predictions_of_the_split(run):
    tested = score(run)
    split = json.loads((run / "splits.json").read_text())["fit"]
    said = tested.predictions
    assert list(said.clip_ids) == [name for clips in split["test"].values() for name in clips]
    assert tested.evaluation.metrics["accuracy"] == pytest.approx(accuracy_score(said.label_N, said.predicted_N))
    expected = f1_score(said.label_N, said.predicted_N, average="macro")
    assert tested.evaluation.metrics["macro_f1"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "override",
    ["data.maps=doctor2", "data.control=centre", "data.map_noise=0.5", "data.map_scale=0.5", "data.frames=6"],
)
def test_what_is_shown_otherwise_changes_what_is_said_and_is_filed_apart(run, override):
    first, other = score(run), score(run, overrides=[override])
    assert first.predictions.clip_ids == other.predictions.clip_ids
    assert not np.allclose(first.predictions.attn_embed_ND, other.predictions.attn_embed_ND, atol=1e-5)
    name = f"test-{override.removeprefix('data.')}"
    assert other.name == name
    kept = json.loads((run / "result.json").read_text())
    assert kept["test"]["metrics"] == pytest.approx(first.evaluation.metrics)
    assert kept[name]["metrics"] == pytest.approx(other.evaluation.metrics)
    assert kept[name]["overrides"] == [override]
    assert [row["phase"] for row in rows(run / "metrics.csv")][-2:] == ["test", name]


def test_without_maps_there_is_no_retrieval_and_still_a_class(run):
    tested = score(run, overrides=["data.control=absent"])
    assert tested.evaluation.mapped == 0
    assert not [name for name in tested.evaluation.metrics if name.startswith(("retrieval", "align"))]
    assert np.isfinite(tested.predictions.logits_NK).all()
    assert not np.allclose(tested.predictions.logits_NK, score(run).predictions.logits_NK, atol=1e-6)


def test_the_validation_split_gives_the_figures_of_training(run):
    trained = json.loads((run / "result.json").read_text())["val"]["metrics"]
    assert score(run, overrides=["split=val"]).evaluation.metrics == pytest.approx(trained)


@pytest.mark.parametrize("how", ["folder", "manifest"])
def test_another_set_is_scored_whole(run, others, how):
    root = others if how == "folder" else others / "manifest.csv"
    tested = score(run, overrides=[f"data.root={root}", "split=all"])
    assert (tested.name, tested.evaluation.clips) == (f"all-{root.name}", 9)
    assert rows(run / "metrics.csv")[-1]["test/accuracy"]
    part = score(run, overrides=[f"data.root={root}", "data.fold=1"])
    assert (part.name, part.evaluation.clips) == (f"test-fold=1-{root.name}", 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split=all", "split=all would take clips that .* was trained on: leave it out, or train anew"),
        ("data.fold=1", "data.fold=1 would take clips that .* was trained on"),
        ("data.split_seed=5", "data.split_seed=5 would take clips"),
        ("data.subjects=6", "data.subjects=6 would take clips"),
        ("model.map_guided=false", "the model is trained: override data"),
        ("loss.clip_weight=0", "the model is trained: override data"),
        ("optim.lr=1", "the model is trained: override data"),
        ("trainer.seed=1", "the model is trained: override data"),
        ("name=other", "the model is trained: override data"),
    ],
)
def test_what_would_score_training_clips_or_another_model_is_refused(run, override, message):
    before = (run / "result.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        score(run, overrides=[override])
    assert (run / "result.json").read_bytes() == before


@pytest.mark.parametrize("how", ["equal bytes", "encoded again"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_copy_of_a_video_that_was_learnt_from_is_found_in_another_set(run, walks, others, tmp_path, part, how):
    people = json.loads((run / "splits.json").read_text())["fit"][part]
    name = next(iter(people.values()))[0]
    copied = next(record for record in read_manifest(walks / "manifest.csv") if record.clip_id == name)
    shutil.copytree(others, tmp_path / "leaky")
    target = tmp_path / "leaky" / "videos" / "subject_04" / "clip_00.mp4"
    if how == "equal bytes":
        shutil.copy(copied.video, target)
    else:
        write_video(target, read_frames(copied.video, start_s=0, end_s=None, frames=8).repeat(2, axis=2), fps=8)
    with pytest.raises(DataError, match=r"of subject subject_04 of .*leaky in test have the same content"):
        score(run, overrides=[f"data.root={tmp_path / 'leaky'}", "split=all"])


def test_a_set_that_changed_is_refused(small, walks, tmp_path, trained):
    records = read_manifest(walks / "manifest.csv")
    manifest = write_manifest(records, tmp_path / "set.csv")
    run = trained(f"data.root={manifest}")
    score(run)
    swapped = [replace(record, fold={0: 1, 1: 0}.get(record.fold, record.fold)) for record in records]
    write_manifest(swapped, manifest)
    with pytest.raises(DataError, match="split is not what it was when"):
        score(run)


def test_where_the_training_set_is_gone_names_decide_and_it_says_so(run, walks, others, tmp_path):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(walks), str(tmp_path / "gone")))
    with pytest.raises(DataError, match="gone: no such file"):
        score(run)
    with pytest.raises(DataError, match=r"cannot be compared with those scored, and .* is the name of one"):
        score(run, overrides=[f"data.root={walks}", "split=all"])
    renamed = [replace(record, clip_id=f"other {record.clip_id}") for record in read_manifest(others / "manifest.csv")]
    manifest = write_manifest(renamed, tmp_path / "renamed.csv")
    with pytest.warns(UserWarning, match="cannot be compared"):
        assert score(run, overrides=[f"data.root={manifest}", "split=all"]).evaluation.clips == 9
    with pytest.warns(UserWarning, match="cannot be compared"):  # its own test subjects, from where the set lies now
        moved = score(run, overrides=[f"data.root={walks}"])
    assert sorted(moved.predictions.clip_ids) == sorted(
        name for clips in json.loads((run / "splits.json").read_text())["fit"]["test"].values() for name in clips
    )


def test_a_run_without_a_model_says_how_to_get_one(run, tmp_path):
    shutil.rmtree(run / "model")
    with pytest.raises(ValueError, match=f"without a model yet: finish it with `videoclip train --resume {run}`"):
        score(run)
    with pytest.raises(ValueError, match="not a run folder"):
        score(tmp_path)


def test_a_run_that_no_longer_knows_its_training_clips_is_refused(run):
    (run / "splits.json").unlink()
    with pytest.raises(DataError, match=r"splits\.json, which names its training clips, is missing: restore it"):
        score(run)
