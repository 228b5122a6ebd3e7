"""The command line: what it prints, what it writes, and one line with exit code 2 for every mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from aaclip.config import Config
from clip_common.config import load_config

VERBS = ["train", "test", "calibrate", "predict", "remember", "import", "info", "prefetch", "config"]


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, error = result
    told = [line for line in error.splitlines() if line.strip()]
    assert code == 2, error
    assert len(told) == 1, f"not one line:\n{error}"
    for word in words:
        assert word in told[0], f"{word!r} is not in: {told[0]}"


def succeeded(result: tuple[int, str, str]) -> str:
    code, printed, error = result
    assert code == 0, error
    return printed


@pytest.fixture
def overrides(clip_folder) -> list[str]:
    return [
        f"backbone.name=local-dir:{clip_folder}",
        "backbone.pretrained=null",
        "backbone.image_size=null",
        "backbone.activation=null",
        "prompts.set=compact",
    ]


@pytest.fixture
def photos(parts, tmp_path) -> Path:
    """Three drawn mugs, flat in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, file in enumerate(sorted((parts / "mug" / "test").rglob("*.png"))[:3]):
        shutil.copy(file, folder / f"{number}.png")
    return folder


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
    released = ["adapters.kind=linear", "heads.activation=none", "heads.class_token=false"]
    printed = succeeded(aaclip("info", *overrides, *released))
    rows = {line.split("  ")[1].strip(): line for line in printed.splitlines() if line.startswith("  ")}
    assert "frozen" in rows["image tower"]
    assert "256" in rows["text adapters"]  # one of 4 blocks, 16 x 16
    assert "2,048" in rows["image adapters"]  # two of 8 blocks, 32 x 32
    assert "3,072" in rows["segmentation heads"]  # four levels, 32 x 24
    assert "768" in rows["detection head"]
    assert "detection head" not in succeeded(aaclip("info", *overrides))  # the image as a whole is CLIP's own
    assert "levels [2, 4, 6, 8]" in printed


def test_data_synthetic_and_data_check(aaclip, tmp_path):
    root = tmp_path / "p [b]arts"
    printed = succeeded(
        aaclip("data", "synthetic", root, "--kinds", "mug, key", "--good=1", "--damaged=1", "--size=32")
    )
    assert "2 kinds" in printed
    assert str(root) in printed.replace("\n", "")
    assert len(list(root.rglob("test/*/*.png"))) == 2 * 7
    checked = succeeded(aaclip("data", "check", root))
    assert "every image and every mask can be read" in checked
    assert "[b]arts: mvtec" in checked
    refused(aaclip("data", "synthetic", root, "--good=1", "--damaged=0"), str(root), "exists")


def test_data_synthetic_of_kinds_that_tiny_has_not_seen(aaclip, tmp_path):
    from clip_common.synthetic.parts import HELD_KINDS

    succeeded(aaclip("data", "synthetic", tmp_path / "held", "--unseen", "--good=1", "--damaged=0", "--size=32"))
    assert {folder.name for folder in (tmp_path / "held").iterdir() if folder.is_dir()} == set(HELD_KINDS)
    refused(aaclip("data", "synthetic", tmp_path / "x", "--unseen", "--kinds=mug"), "--kinds", "--unseen")
    refused(aaclip("data", "synthetic", tmp_path / "x", "--kinds=mugg"), "mugg")
    assert not (tmp_path / "x").exists()


def test_data_check_lists_every_problem(aaclip, parts, tmp_path):
    root = Path(shutil.copytree(parts, tmp_path / "copy"))
    images, masks = sorted(root.rglob("test/hole/*.png")), sorted(root.rglob("ground_truth/crack/*.png"))
    images[0].write_text("no")
    masks[0].unlink()
    Image.new("L", (9, 9), 255).save(masks[1])
    code, printed, error = aaclip("data", "check", root)
    assert code == 2
    assert "3 problem(s), listed above" in error
    assert f"{images[0]}: not a readable image" in printed
    assert "no mask; expected" in printed
    assert "a mask of 9x9 pixels, but its image has 48x48" in printed


def test_data_check_of_no_set(aaclip, tmp_path):
    refused(aaclip("data", "check", tmp_path / "gone"), "gone", "no such folder")
    refused(aaclip("data", "check", tmp_path), "no labelled images found")
    refused(aaclip("data", "check", tmp_path, "--format=mvtecc"), "mvtecc", "mvtec")


@pytest.mark.filterwarnings("ignore:image score not fitted")
def test_data_split_prints_counts_and_writes_lists_that_train_and_test_take(aaclip, parts, small, tmp_path):
    out = tmp_path / "l [b]ists"
    printed = succeeded(aaclip("data", "split", parts, out, "--shot=4", "--seed=2"))
    assert "shot 4, seed 2" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["mug", "2", "2", "2", "4"] in rows  # of 4 flawless and 6 damaged ones
    assert ["star", "2", "2", "2", "4"] in rows
    for name, lines in (("train.jsonl", 8), ("test.jsonl", 12)):
        assert f"written to {out / name}" in printed
        assert len((out / name).read_text().splitlines()) == lines
    refused(aaclip("data", "split", parts, out, "--shot=4"), str(out), "exists")

    epochs = ["stages.text.epochs=1", "stages.image.epochs=1"]
    given = [*small, *epochs, f"data.root={out}", "data.mode=few_shot", "data.shot=4"]
    run = tmp_path / "runs" / "aaclip" / "few"
    assert "learned from 8 images of 2 classes" in succeeded(aaclip("train", *given, "name=few"))
    assert "few on l [b]ists" in succeeded(aaclip("test", run, out))
    assert "12 images" in (run / "test-l [b]ists" / "results.md").read_text(encoding="utf-8")
    refused(aaclip("test", run, parts), "to test on are among those", "learned from")  # some of its test split


def test_data_split_of_what_cannot_be_split(aaclip, parts, tmp_path):
    out = tmp_path / "out"
    refused(aaclip("data", "split", parts, out), "class mug: 4 normal image(s), data.shot=32 needs 16")
    refused(aaclip("data", "split", parts, out, "--shot=5"), "data.shot=5", "even number")
    refused(aaclip("data", "split", parts, out, "--shot=few"), "--shot")
    refused(aaclip("data", "split", tmp_path / "gone", out), "gone", "no such folder")
    refused(aaclip("data", "split", parts, out, "--shot=4", "--format=visa"), "not a set of the format visa")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:image score not fitted")  # a random CLIP need not find a defect
def test_train_in_two_calls_by_the_source_s_flags(aaclip, small, trained, tmp_path):
    folder = tmp_path / "ckpt" / "[b]mvtec"
    printed = succeeded(aaclip("train", *small, "--save_path", folder, "--stage", "text"))
    assert f"run    {folder}" in printed
    assert f"Train the image stage:  aaclip train --resume {folder}" in printed
    assert "learned from" not in printed
    refused(aaclip("test", folder, tmp_path), "no labelled images")
    refused(aaclip("train", "--save_path", folder, "--text_lr=1"), "begun with stages.text.lr=0.001, not 1.0")
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


def test_calibrate_goes_on_past_what_cannot_be_read(aaclip, saved, photos):
    (photos / "[b]bad.png").write_text("no")
    command = ["calibrate", saved, photos, "--name", "mug", "--target-fpr", 0.34]
    code, printed, error = aaclip(*command)
    assert code == 2
    assert error.strip() == "error: 1 of 4 images could not be read, listed above"
    assert "normal quantile of 3 normal images" in printed
    assert f"{photos / '[b]bad.png'}: not a readable image" in printed
    assert json.loads((saved / "detector.json").read_text())["threshold"]["images"] == 3
    before = (saved / "detector.json").read_text()
    for file in photos.iterdir():
        file.write_text("no")
    refused(aaclip(*command), "none of 4 images could be read")
    assert (saved / "detector.json").read_text() == before


def test_calibrate_refuses_what_the_run_learned_from(aaclip, trained, photos, tmp_path):
    run = shutil.copytree(trained(), tmp_path / "run")
    before = (run / "model" / "detector.json").read_text()
    refused(aaclip("calibrate", run, photos, "--name=mug"), "3 of 3 images to calibrate on", "learned from")
    assert (run / "model" / "detector.json").read_text() == before


def test_predict_before_calibration_with_a_threshold_and_after_it(aaclip, saved, photos, tmp_path):
    out = tmp_path / "out"
    command = ["predict", saved, photos, "--name", "mug", "--out", out]
    assert "no verdicts yet: aaclip calibrate sets a threshold" in succeeded(aaclip(*command))
    verdicts = [json.loads(line)["verdict"] for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert verdicts == [None] * 3

    for threshold, verdict in ((0, "anomalous"), (1, "normal")):
        printed = succeeded(aaclip(*command, "--threshold", threshold))
        assert printed.count(verdict) == 3
        assert "no verdicts yet" not in printed
    assert "no verdicts yet" in succeeded(aaclip(*command))  # it was of that call alone

    said = succeeded(aaclip("calibrate", saved, photos, "--name", "mug", "--target-fpr", 0.34))
    assert "normal quantile of 3 normal images, target 34 % false alarms" in said
    printed = succeeded(aaclip(*command, "--html", tmp_path / "report.html"))
    assert (printed.count("anomalous"), printed.count(" normal")) == (1, 2)
    assert "3 normal" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "2 normal" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("threshold", ["2", "-0.5", "high"])
def test_predict_with_a_threshold_that_is_none(aaclip, saved, photos, tmp_path, threshold):
    command = ["predict", saved, photos, "--name=mug", "--out", tmp_path / "out"]
    refused(aaclip(*command, f"--threshold={threshold}"), "--threshold", "should be")


def test_calibrate_with_too_few_images_or_an_odd_rate(aaclip, saved, photos):
    command = ["calibrate", saved, photos, "--name", "mug"]
    refused(aaclip(*command, "--guarantee"), "3 normal images cannot promise it, 99 can")
    refused(aaclip(*command, "--target-fpr", "1.5"), "target_fpr=1.5", "expected a share")
    succeeded(aaclip(*command, "--guarantee", "--target-fpr", "0.25"))


def test_predict_goes_on_and_lists_every_failure_at_the_end(aaclip, saved, photos, tmp_path):
    for number in range(12):
        (photos / f"bad [b]{number}.png").write_text("no")
    cut = photos / "1.png"
    cut.write_bytes(cut.read_bytes()[:200])
    out, page = tmp_path / "out", tmp_path / "report.html"
    code, printed, error = aaclip("predict", saved, photos, "--name", "mug", "--out", out, "--html", page)
    assert code == 2
    assert error.strip() == "error: 13 of 15 images could not be read, listed above"
    assert printed.count("not a readable image") == 13
    assert f"{photos / 'bad [b]7.png'}: not a readable image" in printed
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2
    assert "13 could not be read" in page.read_text(encoding="utf-8")


def test_predict_on_names_that_look_like_markup(aaclip, saved, photos, tmp_path):
    folder = photos.rename(tmp_path / "x[")
    (folder / "0.png").rename(folder / "[bold]groß, 1.png")
    out = tmp_path / "[red]out"
    printed = succeeded(aaclip("predict", saved, f"{folder}/[[]bold]*", "--name", "[x] mug", "--out", out))
    assert f"written to {out}" in printed
    assert "[bold]groß,1.png" in "".join(printed.split())  # folded, whole


def test_predict_on_nothing_and_on_a_page_of_somebody_else(aaclip, saved, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.html").write_text("mine")
    for source in ("empty", "*.gif", "gone.png"):
        refused(aaclip("predict", saved, tmp_path / source, "--name=mug", "--out", tmp_path / "o"), "no picture there")
    command = ["predict", saved, photos, "--name=mug", "--out", tmp_path / "o", "--html", tmp_path / "mine.html"]
    refused(aaclip(*command), "mine.html exists and is no page of aaclip predict")
    refused(aaclip("predict", saved, photos, "--name=", "--out", tmp_path / "o"), "name of a thing is empty")
    assert not list(tmp_path.glob("o/*"))


@pytest.mark.parametrize("verb", ["predict", "calibrate", "test"])
def test_what_is_no_detector_is_one_line(
    aaclip, saved, trained, photos, parts, clip_folder, other_clip, tmp_path, verb
):
    def call(source: Path) -> tuple[int, str, str]:
        return aaclip(verb, source, *([parts] if verb == "test" else [photos, "--name=mug"]))

    refused(call(tmp_path / "gone"), "gone")
    refused(call(photos), "photos", "neither a run folder of aaclip nor")
    unfinished = Path(shutil.copytree(trained(), tmp_path / "unfinished", ignore=shutil.ignore_patterns("model")))
    (unfinished / "training.json").unlink()  # `test` would refuse the images first
    refused(call(unfinished), "run without a model yet", "aaclip train --resume")
    config = (saved / "config.yaml").read_text()
    (saved / "config.yaml").write_text(config.replace(str(clip_folder), str(other_clip)))
    refused(call(saved), "was trained on other weights")
    (saved / "config.yaml").write_text(config)
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


def test_remember_then_test_with_a_memory(aaclip, saved, photos, parts, tmp_path):
    before = json.loads((saved / "detector.json").read_text())
    code, printed, _ = aaclip("remember", saved, photos, "--name", "mug")
    assert code == 0
    assert "normal images of mug remembered" in printed
    assert json.loads((saved / "detector.json").read_text()) == before | {"threshold": None}
    (tmp_path / "broken.png").write_bytes(b"no picture")
    refused(aaclip("remember", saved, tmp_path / "broken.png", "--name", "mug"), "broken.png")
    code, printed, _ = aaclip("test", saved, parts, "--memory", 1, "--out", tmp_path / "results")
    assert code == 0
    assert "1 normal images of each class remembered" in (tmp_path / "results" / "results.md").read_text()
    refused(aaclip("test", saved, parts, "--memory", 99), "--memory 99", "ask for fewer")


def test_tiles_are_calibrated_with_and_predicted_with(aaclip, saved, photos, tmp_path):
    files = sorted(photos.glob("*.png")) or sorted(photos.rglob("*.png"))
    assert aaclip("calibrate", saved, *files, "--name", "mug", "--target-fpr", "0.5", "--tile", 24)[0] == 0
    assert json.loads((saved / "detector.json").read_text())["threshold"]["tile"] == 24
    out = tmp_path / "out"
    refused(aaclip("predict", saved, files[0], "--name", "mug", "--out", out), "calibrated with tile=24, not None")
    assert not out.exists()
    assert aaclip("predict", saved, files[0], "--name", "mug", "--out", out, "--tile", 24)[0] == 0
    assert aaclip("predict", saved, files[0], "--name", "mug", "--out", out, "--threshold", 0.5)[0] == 0
