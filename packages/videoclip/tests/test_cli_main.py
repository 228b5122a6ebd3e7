"""The command line: what it prints, what it writes, and one line with exit code 2 for every mistake."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.commands import refused

from clip_common.config import load_config
from videoclip import Config
from videoclip.data.manifest import read_manifest, write_manifest

VERBS = ["train", "test", "cv", "ablate", "predict", "overlay", "config", "data check", "data render-maps"]
VERBS += ["data import", "data synthetic"]

GUIDED = "model.map_guided=true model.map_guided_type=spatiotemporal"
SOURCE = [
    "model.map_guided=false loss.clip_weight=1.0 model.lambda_token=0",
    f"{GUIDED} loss.clip_weight=0 model.lambda_token=0",
    f"{GUIDED} loss.clip_weight=1.0 model.lambda_token=0",
    f"{GUIDED} loss.clip_weight=1.0 model.lambda_token=0.1",
    "model.map_guided=true model.map_guided_type=channel",
    "model.map_guided=true model.map_guided_type=weighted_pool",
    f"{GUIDED} model.map_guided_sigmoid_gate=true",
]
"""The example commands of the description: B1 to B4, C1 to C3."""


def succeeded(result: tuple[int, str, str]) -> str:
    code, printed, error = result
    assert code == 0, error
    return printed


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained("model.map_guided=true"), tmp_path / "run"))


def test_help_imports_nothing_heavy():
    for verb in ("train", "data"):
        command = [sys.executable, "-X", "importtime", "-m", "videoclip", verb, "--help"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
        assert "typer" in imported
        assert not {"torch", "lightning", "numpy", "matplotlib", "PIL", "av", "omegaconf"} & imported


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_shows_an_example(videoclip, verb):
    assert f"videoclip {verb} " in flat(succeeded(videoclip(*verb.split(), "--help")))


def test_called_bare_it_lists_its_verbs(videoclip):
    printed = succeeded(videoclip())
    assert all(f" {verb.partition(' ')[0]} " in printed for verb in VERBS)


def test_as_a_module_and_without_a_verb_it_trains():
    command = [sys.executable, "-m", "videoclip", "model.map_guided=maybe"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "model.map_guided: expected bool, got 'maybe'" in shown.stderr


@pytest.mark.parametrize("command", SOURCE)
def test_the_example_commands_of_the_source_run(videoclip, small, tmp_path, command):
    words = command.split()
    code, printed, error = videoclip(*words, *small, "name=run", "trainer.fast_dev_run=true")
    assert code == 0, error
    run = tmp_path / "runs" / "videoclip" / "run"
    assert f"Score it:  videoclip test {run}" in printed
    kept = load_config(Config, config=run / "config.yaml")
    assert kept == load_config(Config, overrides=[*words, *small, "name=run", "trainer.fast_dev_run=true"])


@pytest.mark.parametrize("command", [*SOURCE, "train", "cv", "cv folds=3", "ablate"])
def test_without_a_set_one_line_says_what_to_set(videoclip, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    refused(
        videoclip(*command.split()), "data.root=… is needed: a folder with manifest.csv", "videoclip data synthetic"
    )
    assert list(tmp_path.iterdir()) == []


def test_from_no_data_to_a_tested_run(videoclip, tmp_path, monkeypatch, small):
    """What a new user types."""
    monkeypatch.chdir(tmp_path)
    tiny = [text for text in small if not text.startswith(("data.root", "data.cache_dir", "runs"))]
    printed = succeeded(
        videoclip("data", "synthetic", "walks", "--subjects", 9, "--clips", 1, "--size", 32, "--folds", 3)
    )
    assert flat(printed) == "9 clips of 9 people in walks; labels: 0 normal, 1 dragging foot, 2 stiff arm"
    printed = succeeded(videoclip("data", "check", "walks"))
    assert "every clip and every map can be read" in flat(printed)
    # a configuration by name, without a verb; what comes later on the line holds
    tiny = ["--config", "walking", "data.root=walks", *tiny, "data.batch_size=3", "name=first"]
    printed = succeeded(videoclip(*tiny))
    assert "first: validation subjects" in printed
    assert "decoded clips: 0.1 MiB in runs/cache/clips, 9 of 9 added" in printed
    assert "Score it:  videoclip test runs/videoclip/first" in printed
    printed = succeeded(videoclip("test", "runs/videoclip/first"))
    assert "first: test of walks" in printed
    assert "3 clips of 3 subjects, 3 with a map" in flat(printed)
    assert "the baseline always predicts class normal" in flat(printed)
    printed = succeeded(videoclip("test", "runs/videoclip/first", "data.control=absent"))
    assert "first: test-control=absent of walks" in printed
    assert "R@1" not in printed
    printed = succeeded(videoclip("train", "--resume", "runs/videoclip/first"))
    assert "first: validation subjects" in printed
    assert "decoded clips: 0.1 MiB in runs/cache/clips, 0 of 9 added" in printed


def test_cv_prints_mean_and_spread_and_keeps_the_table(videoclip, small, tmp_path):
    code, printed, error = videoclip("cv", *small, "name=cv", "trainer.fast_dev_run=true")
    assert code == 0
    assert "fold 4 (5 of 5): subjects 9 train, 3 val, 3 test" in error
    (line,) = (line for line in printed.splitlines() if line.startswith("  macro F1  "))
    folds = json.loads((tmp_path / "runs" / "videoclip" / "cv" / "result.json").read_text())["folds"]
    values = [fold["macro_f1"] for fold in folds]
    assert f"{sum(values) / 5:.3f} ± " in line
    assert f"{min(values):.3f} to {max(values):.3f}" in line
    assert "All 15 subjects together" in printed
    assert f"table  {tmp_path / 'runs' / 'videoclip' / 'cv' / 'cross-validation.md'}" in printed
    refused(videoclip("cv", "folds=x", *small), "folds: expected int", "'x'")


def test_ablate_prints_a_table_that_fits_a_terminal(videoclip, small):
    command = ["ablate", "--table", "controls", "seeds=[0]", "name=some", "trainer.fast_dev_run=true", *small]
    code, printed, error = videoclip(*command)
    assert code == 0, error
    assert "absent: full method, no map in the test, seed 0 (7 of 7)" in error
    assert "minus B0 (95 % interval)" in printed
    assert "…" not in printed
    assert "always the most frequent class" in flat(printed).replace("frequent 0.167 class", "frequent class")
    assert succeeded(videoclip(*command)) == printed
    refused(videoclip("ablate", "--table", "D", *small), "--table", "'D'", "ablate --help")
    refused(videoclip("ablate", "seeds=[a]", *small), "seeds: expected list[int]")


@pytest.mark.filterwarnings("ignore:no map is given")
def test_predict_answers_what_it_can_and_ends_with_two_where_it_cannot(videoclip, run, walks, tmp_path):
    video = walks / "videos" / "subject_00" / "clip_00.mp4"
    out = tmp_path / "out"
    printed = succeeded(videoclip("predict", run, video, "--out", out))
    assert f"picture {out / 'clip_00.png'}" in printed
    broken = tmp_path / "[bold] 1.mp4"  # no markup
    broken.write_bytes(b"no video")
    code, printed, error = videoclip("predict", run, broken, video, "--out", out)
    assert code == 2
    assert f"{broken}: " in printed
    assert "picture" in printed
    assert error.splitlines() == ["error: 1 of 2 videos could not be read, listed above"]
    joints = walks / "keypoints" / "subject_00" / "clip_00.npy"
    succeeded(videoclip("predict", run, video, "--keypoints", joints, "--regions", "foot, wrist", "--out", out))
    assert json.loads((out / "predictions.jsonl").read_text())["clips"][0]["guided"] is True
    refused(videoclip("predict", run, video, "--regions", "foot"), "give both, or neither")
    refused(videoclip("predict", run, video, "--keypoints", joints, "--regions", "feet"), "feet", "lumbar_pelvis")
    refused(videoclip("predict", run), "videos", "predict --help")
    refused(videoclip("predict", tmp_path / "no", video), "no such folder")


def test_overlay_of_a_set_and_of_a_run(videoclip, run, walks, tmp_path):
    printed = succeeded(videoclip("overlay", walks, "data.size=32", "--count", 2, "--out", tmp_path / "of data"))
    assert printed.count("picture ") == 4
    printed = succeeded(videoclip("overlay", run, "--clip", "subject_00_clip_01"))
    assert f"picture {run / 'plots' / 'overlays' / 'subject_00_clip_01.png'}" in printed
    refused(videoclip("overlay", tmp_path / "nothing"), "no such file or folder")


def test_maps_that_are_rendered_are_checked_and_trained_on(videoclip, walks, small, tmp_path):
    printed = succeeded(videoclip("data", "render-maps", walks, tmp_path / "maps", "--maps", "doctor1", "--size", 32))
    assert "30 maps; the data set with them is " in flat(printed)
    printed = succeeded(videoclip("data", "check", tmp_path / "maps", "data.maps=file", "data.size=32"))
    assert "without a map" not in printed
    overrides = [f"data.root={tmp_path / 'maps'}", "data.maps=file", "trainer.fast_dev_run=true", "name=rendered"]
    succeeded(videoclip("train", *small, *overrides))
    refused(videoclip("data", "render-maps", walks, tmp_path / "maps"), "exists")


def test_a_bad_set_is_listed_line_by_line(videoclip, walks, tmp_path):
    shutil.copytree(walks, tmp_path / "bad")
    (tmp_path / "bad" / "videos" / "subject_03" / "clip_00.mp4").write_bytes(b"no video")
    (tmp_path / "bad" / "maps" / "subject_04" / "clip_01.npy").unlink()
    code, printed, error = videoclip("data", "check", tmp_path / "bad")
    assert code == 2
    assert "subject_03_clip_00" in printed
    assert "subject_04_clip_01" in printed
    assert error.splitlines() == [f"error: {tmp_path / 'bad'}: 2 problem(s), listed above"]
    refused(videoclip("data", "check", tmp_path / "nothing"), "no such file or folder")
    refused(videoclip("data", "synthetic", tmp_path / "few", "--subjects", 5), "need 15 subjects: got subjects=5")


def test_a_leak_is_one_line(videoclip, small, walks, tmp_path):
    records = read_manifest(walks / "manifest.csv")
    leaking = [*records, replace(records[0], clip_id="copy", subject_id="twin", fold=3)]
    manifest = write_manifest(leaking, tmp_path / "leak.csv")
    refused(videoclip("train", *small, f"data.root={manifest}"), "subject_00", "twin", "have the same content")
    refused(videoclip("cv", *small, f"data.root={manifest}"), "have the same content")


def test_config_prints_what_it_would_run(videoclip, tmp_path):
    printed = succeeded(videoclip("config", "--config", "walking", "model.map_guided_type=channel", "name=first"))
    told = yaml.safe_load(printed)
    assert told["model"]["map_guided_type"] == "channel"
    assert told["data"]["size"] == 64
    assert set(told) == set(vars(Config()))
    (tmp_path / "own.yaml").write_text(printed)
    assert load_config(Config, config=tmp_path / "own.yaml").model.map_guided_type == "channel"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("trian", ("trian", "train")),
        ("train --resum x", ("--resum", "train --help")),
        ("train model.map_guide=true", ("model.map_guide", "model.map_guided")),
        ("train optim.lr=fast", ("optim.lr", "fast")),
        ("train --config running", ("running", "walking")),
        ("train --resume nowhere", ("nowhere", "not a run folder")),
        ("train --resume nowhere data.size=32", ("leave out --config and overrides",)),
        ("test", ("RUN", "test --help")),
        ("test nowhere", ("nowhere", "not a run folder")),
        ("predict nowhere x.mp4", ("nowhere", "no such folder")),
        ("config data.size=big", ("data.size", "big")),
        ("ablate seeds=[]", ("seeds=[]",)),
    ],
)
def test_mistakes_are_one_line(videoclip, tmp_path, monkeypatch, command, words):
    monkeypatch.chdir(tmp_path)
    refused(videoclip(*command.split()), *words)
    assert list(tmp_path.iterdir()) == []
