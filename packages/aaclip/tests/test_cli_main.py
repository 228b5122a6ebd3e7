"""The command line: what it prints, what it writes, and one line with exit code 2 for every mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.commands import refused, succeeded

from aaclip.config import Config
from clip_common.config import load_config

VERBS = ["train", "test", "calibrate", "predict", "remember", "import", "info", "prefetch", "config"]


@pytest.fixture
def overrides(clip_folder) -> list[str]:
    return [
        f"backbone.name=local-dir:{clip_folder}",
        "backbone.pretrained=null",
        "backbone.image_size=null",
        "backbone.activation=null",
        "prompts.set=compact",
    ]


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "aaclip", "predict", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "typer" in imported
    assert not {"torch", "lightning", "numpy", "matplotlib", "PIL"} & imported
    assert "metal nut" in shown.stdout


def test_as_a_module_it_lists_its_verbs():
    shown = subprocess.run([sys.executable, "-m", "aaclip", "--help"], capture_output=True, text=True, check=True)
    for verb in (*VERBS, "data"):
        assert verb in shown.stdout


@pytest.mark.parametrize("verb", [*VERBS, "data check", "data split", "data synthetic"])
def test_every_verb_shows_an_example(aaclip, verb):
    assert f"aaclip {verb} " in " ".join(succeeded(aaclip(*verb.split(), "--help")).split())


def test_an_unknown_verb_and_an_unknown_option(aaclip):
    refused(aaclip("tarin"), "tarin", "train")
    refused(aaclip("predict", "run", "x.png", "--nmae", "mug"), "--nmae", "predict --help")
    refused(aaclip("predict", "run", "x.png"), "--name")


def test_config_prints_what_it_would_run(aaclip):
    printed = yaml.safe_load(succeeded(aaclip("config", "stages.image.lr=0.25", "name=first")))
    assert printed["stages"]["image"]["lr"] == 0.25
    assert printed["name"] == "first"
    assert printed["levels"] is None
    assert set(printed) == set(vars(Config()))


@pytest.mark.parametrize(
    ("preset", "section", "field", "value"),
    [
        ("official", "surgery", "axis", "batch"),
        ("reference", "preprocess", "statistics", "imagenet"),
        ("tiny", "backbone", "name", "tiny"),
    ],
)
def test_config_prints_a_preset_that_can_be_read_again(aaclip, tmp_path, preset, section, field, value):
    printed = succeeded(aaclip("config", "--config", preset))
    assert yaml.safe_load(printed)[section][field] == value
    (tmp_path / "own.yaml").write_text(printed)
    again = load_config(Config, config=str(tmp_path / "own.yaml"), package="aaclip")
    assert again == load_config(Config, config=preset, package="aaclip")


def test_config_of_unknown_names(aaclip):
    refused(aaclip("config", "stages.txet.lr=1"), "stages.txet", "stages.text")
    refused(aaclip("config", "stages.text.lr=fast"), "stages.text.lr", "fast")
    refused(aaclip("config", "--config", "oficial"), "oficial", "official")


def test_info_counts_what_is_frozen_and_what_is_trained(aaclip, overrides):
    released = ["adapters.kind=linear", "heads.activation=none", "heads.detection=mean"]
    printed = succeeded(aaclip("info", *overrides, *released))
    rows = {line.split("  ")[1].strip(): line for line in printed.splitlines() if line.startswith("  ")}
    assert "frozen" in rows["image tower"]
    assert "256" in rows["text adapters"]  # one of 4 blocks, 16 x 16
    assert "2,048" in rows["image adapters"]  # two of 8 blocks, 32 x 32
    assert "3,072" in rows["segmentation heads"]  # four levels, 32 x 24
    assert "768" in rows["detection head"]
    assert "detection head" not in succeeded(aaclip("info", *overrides))  # the image as a whole is CLIP's own
    attending = succeeded(aaclip("info", *overrides, "cross_attention.enabled=true"))
    assert "1,344" in next(line for line in attending.splitlines() if "text cross-attention" in line)
    assert "image cross-attention" in attending
    assert "levels [2, 4, 6, 8]" in printed


@pytest.mark.filterwarnings("ignore:image score not fitted")  # a random CLIP need not find a defect
def test_train_in_two_calls_by_the_source_s_flags(aaclip, small, trained, tmp_path):
    folder = tmp_path / "ckpt" / "[b]mvtec"
    printed = succeeded(aaclip("train", *small, "--save_path", folder, "--stage", "text"))
    assert f"run    {folder}" in printed
    assert f"Train the image stage:  aaclip train --resume {folder}" in printed
    assert "learned from" not in printed
    refused(aaclip("test", folder, tmp_path), "no labelled images")
    refused(aaclip("train", "--save_path", folder, "--text_lr=1"), "started with stages.text.lr=0.001, not 1.0")
    printed = succeeded(aaclip("train", "--save_path", folder, "--image_epoch=2", "--image_batch_size=8"))
    assert "learned from 20 images of 2 classes" in printed
    assert f"aaclip test {folder}" in printed
    weights = [run / "model" / "model.safetensors" for run in (folder, trained())]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_test_goes_on_past_what_cannot_be_read(aaclip, saved, parts, tmp_path):
    root = Path(shutil.copytree(parts, tmp_path / "set"))
    bad = sorted((root / "mug" / "test").rglob("*.png"))[:2]
    bad[0].write_text("no")
    bad[1].rename(bad[1].with_name("[b]cut.png"))
    cut = bad[1].with_name("[b]cut.png")
    cut.write_bytes(cut.read_bytes()[:200])
    masks = sorted((root / "star" / "ground_truth").rglob("*.png"))
    masks[0].write_text("no")
    code, printed, error = aaclip("test", saved, root)
    assert code == 2
    assert error.strip() == "error: 3 of 16 images could not be read, listed above"
    assert printed.count("not a readable image") == 3
    for file in (bad[0], cut, masks[0]):
        assert f"{file}: not a readable image" in printed
    results = json.loads((saved / "test-set" / "results.json").read_text())
    assert set(results["classes"]) == {"mug", "star"}
    assert "13 images" in results["note"]
    assert "3 more could not be read" in (saved / "test-set" / "results.md").read_text()

    for file in root.glob("*/test/*/*.png"):
        file.write_text("no")
    refused(aaclip("test", saved, root, "--out", tmp_path / "out"), "none of 16 images could be read", "first")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["predict", "calibrate", "test"])
def test_what_is_no_detector_is_one_line(
    aaclip, saved, trained, photos, parts, clip_folder, other_clip, tmp_path, verb
):
    def call(source: Path) -> tuple[int, str, str]:
        return aaclip(verb, source, *([parts] if verb == "test" else [photos, "--name=mug"]))

    refused(call(tmp_path / "gone"), "gone")
    refused(call(photos), "photos", "neither a run folder nor a saved model of aaclip")
    unfinished = Path(shutil.copytree(trained(), tmp_path / "unfinished", ignore=shutil.ignore_patterns("model")))
    (unfinished / "training.json").unlink()  # `test` would refuse the images first
    refused(call(unfinished), "run without a model yet", "aaclip train --resume")
    config = (saved / "config.json").read_text()
    (saved / "config.json").write_text(config.replace(str(clip_folder), str(other_clip)))
    refused(call(saved), "is of another model")
    (saved / "config.json").write_text(config)
    (saved / "model.safetensors").write_bytes(b"\x00" * 40)
    refused(call(saved), "model.safetensors is damaged")


@pytest.mark.filterwarnings("ignore:image score not fitted")  # a random CLIP need not find a defect
def test_train_then_test_then_predict(aaclip, small, parts, photos, tmp_path):
    from clip_common.synthetic import write_mvtec

    other = write_mvtec(tmp_path / "other", kinds=("key", "lamp"), train=0, good=2, damaged=1, size=32, seed=3)
    code, printed, error = aaclip("train", *small, "stages.text.epochs=1", "stages.image.epochs=1", "name=first")
    run = tmp_path / "runs" / "aaclip" / "first"
    assert code == 0, error
    assert "learned from 20 images of 2 classes" in printed
    assert f"aaclip test {run}" in printed

    printed = succeeded(aaclip("test", run, other))
    assert "first on other" in printed
    for suffix in ("json", "csv", "md"):
        assert (run / "test-other" / f"results.{suffix}").stat().st_size > 0
    whole = json.loads((run / "test-other" / "results.json").read_text())
    assert set(whole["classes"]) == {"key", "lamp"}
    assert set(whole["intervals"]["key"]) == set(whole["classes"]["key"])
    refused(aaclip("test", run, parts), "16 of 16 images to test on", "learned from")
    refused(aaclip("train", "--resume", run, "stages.text.lr=1"), "--resume", "overrides")
    refused(aaclip("train", *small, "name=first"), "first")
    assert "no verdicts yet" in succeeded(aaclip("predict", run, photos, "--name=mug", "--out", tmp_path / "out"))


def test_test_of_plain_clip_by_its_name(aaclip, clip_folder, parts, tmp_path):
    printed = succeeded(aaclip("test", f"local-dir:{clip_folder}", parts, "--out", tmp_path / "plain"))
    assert "mug" in printed
    values = json.loads((tmp_path / "plain" / "results.json").read_text())["classes"]["mug"]
    assert all(0 <= value <= 1 for value in values.values())


@pytest.mark.parametrize("anomalous", [False, True])
def test_test_of_a_set_of_one_sort_says_so(aaclip, saved, parts, tmp_path, anomalous):
    root = Path(shutil.copytree(parts, tmp_path / "Teile, groß"))
    for folder in root.glob("*/test/*"):
        if (folder.name != "good") != anomalous:
            shutil.rmtree(folder)
    printed = succeeded(aaclip("test", saved, root))
    assert "n/a" in printed
    folder = saved / "test-Teile, groß"
    assert json.loads((folder / "results.json").read_text())["classes"]["mug"]["image/auroc"] is None
    assert "n/a" in (folder / "results.md").read_text(encoding="utf-8")


def test_test_of_a_set_without_a_test_split(aaclip, saved, parts, tmp_path):
    root = Path(shutil.copytree(parts, tmp_path / "train", ignore=shutil.ignore_patterns("test")))
    refused(aaclip("test", saved, root))


def test_weights_that_are_not_here_name_the_command_that_gets_them(aaclip, parts, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    refused(aaclip("info"), "prefetch ViT-L-14-336 openai")


def test_import_of_no_checkpoint(aaclip, overrides, tmp_path):
    refused(
        aaclip("import", tmp_path, tmp_path / "out", *overrides, "surgery.blocks=6", "levels=[8]"), "text_adapter.pth"
    )
    assert not (tmp_path / "out").exists()
