"""Score and border of masks fitted on a labelled set after an import; until then a line says that they are not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import refused, succeeded
from sklearn.metrics import precision_recall_curve

from aaclip.data import read_dataset
from aaclip.data.augment import squash
from aaclip.detector.calibration import Logistic
from aaclip.detector.detector import Detector
from aaclip.detector.fitting import fit_scores
from aaclip.detector.looking import open_picture
from clip_common.images import read_mask

NOT_FITTED = "not fitted yet: the score of a single image and the border of masks; aaclip fit-score"


@pytest.fixture
def imported(detector, tmp_path) -> Path:
    """A saved detector without a fit, and with a threshold."""
    detector.score = Logistic(a=50.0, b=0.5, c=0.0)
    return detector.save_pretrained(tmp_path / "imported")


def stored(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def slow_fit(detector: Detector, records) -> tuple[Logistic, float]:
    """Picture by picture."""
    cls, top, labels, pixels, marks = [], [], [], [], []
    for record in records:
        picture = open_picture(record.image)
        mask = read_mask(record.mask, size=picture.size) if record.mask else None
        text = detector.class_embedding(record.class_name)[None]
        scores = detector.scores(detector.tensor_of(picture)[None], text)
        cls.append(scores.classification_B.item())
        top.append(scores.top_B.item())
        labels.append(record.anomalous)
        pixels.append(scores.maps_BSS.numpy().ravel())
        marks.append(squash(picture, mask, side=detector.size)[1].ravel())
    precision, recall, thresholds = precision_recall_curve(np.concatenate(marks), np.concatenate(pixels))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return Logistic.fit(np.array(cls), np.array(top), np.array(labels)), thresholds[f1[:-1].argmax()]


def make_learnable(detector: Detector, records) -> None:
    """Turn the direction of every class around if the classification falls with the defects."""
    try:
        slow_fit(detector, records)
    except ValueError:
        for name in ("mug", "star"):
            detector.classes[detector.prompts.name_of(name)] = detector.class_embedding(name).flip(dims=[1])


@pytest.fixture
def learnable(detector, parts):
    """A detector whose classification rises with the defects of the parts."""
    make_learnable(detector, read_dataset(parts).of(split="test"))
    return detector


def test_the_fit_is_that_of_the_images_one_by_one(learnable, parts):
    records = read_dataset(parts).of(split="test")
    score, border = slow_fit(learnable, records)
    assert fit_scores(learnable, records) == {}
    assert learnable.score.images == len(records)
    assert (learnable.score.a, learnable.score.b, learnable.score.c) == pytest.approx(
        (score.a, score.b, score.c), rel=1e-3, abs=1e-5
    )
    assert learnable.border == pytest.approx(border, rel=2**-10)  # a bin of the histogram


def test_without_masks_the_border_stays(learnable, parts):
    records = [replace(record, mask=None) for record in read_dataset(parts).of(split="test")]
    learnable.border = 0.25
    fit_scores(learnable, records)
    assert learnable.border == 0.25
    assert learnable.score.images == len(records)


def test_the_command_fits_and_saves_and_the_line_is_gone(aaclip, learnable, parts, photos, tmp_path):
    learnable.score = Logistic(a=50.0, b=0.5, c=0.0)
    folder = learnable.save_pretrained(tmp_path / "[b]imported")
    out = ["--out", tmp_path / "out"]
    assert f"{NOT_FITTED} {folder} SET" in succeeded(aaclip("test", folder, parts, *out))
    predict = ["predict", folder, photos, "--name=mug", *out]
    assert f"{NOT_FITTED} {folder} SET" in succeeded(aaclip(*predict))
    calibrate = ["calibrate", folder, photos, "--name=mug", "--target-fpr=0.34"]
    succeeded(aaclip(*calibrate))
    before = (folder / "model.safetensors").read_bytes()

    printed = succeeded(aaclip("fit-score", folder, parts))
    assert "fitted on 20 images" in printed  # MVTec's training split has no defects: all of the set
    assert "its training split lacks a label, so test images were used" in printed
    assert "the threshold was cleared" in printed
    assert stored(folder)["score"]["images"] == 20
    assert stored(folder)["threshold"] is None
    assert (folder / "model.safetensors").read_bytes() == before
    again = Detector.from_pretrained(folder)
    assert f"image score {again.score.describe()}; border of masks {again.border:.4g}" in printed
    for command in (["test", folder, parts, *out], predict):
        assert "not fitted" not in succeeded(aaclip(*command))


def test_a_training_split_with_both_labels_is_used_alone(aaclip, learnable, parts, tmp_path):
    succeeded(aaclip("data", "split", parts, tmp_path / "lists", "--shot", 6))
    make_learnable(learnable, read_dataset(tmp_path / "lists").of(split="train"))
    folder = learnable.save_pretrained(tmp_path / "imported")
    printed = succeeded(aaclip("fit-score", folder, tmp_path / "lists"))
    assert "fitted on 12 images" in printed
    assert "lacks a label" not in printed
    assert "threshold" not in printed


def test_fit_score_goes_on_past_what_cannot_be_read(aaclip, learnable, parts, tmp_path):
    folder = learnable.save_pretrained(tmp_path / "imported")
    root = Path(shutil.copytree(parts, tmp_path / "set"))
    bad = sorted((root / "mug" / "test").rglob("*.png"))[0]
    bad.write_text("no")
    code, printed, error = aaclip("fit-score", folder, root)
    assert code == 2
    assert error.strip() == "error: 1 of 20 images could not be read, listed above"
    assert f"{bad}: not a readable image" in printed
    assert stored(folder)["score"]["images"] == 19


def test_a_set_that_cannot_be_fitted_leaves_everything(aaclip, imported, parts, photos, tmp_path):
    before = stored(imported)
    good = Path(shutil.copytree(parts, tmp_path / "good"))
    for defect in good.glob("*/test/*"):
        if defect.name != "good":
            shutil.rmtree(defect)
    refused(aaclip("fit-score", imported, good), "a score is fitted on normal and anomalous images, got 8 and 0")
    refused(aaclip("fit-score", imported, photos), "no labelled images")
    refused(aaclip("fit-score", photos, parts), "neither a run folder nor a saved model")
    assert stored(imported) == before


def test_a_plain_clip_has_nothing_to_fit(aaclip, clip_folder, parts, tmp_path):
    printed = succeeded(aaclip("test", f"local-dir:{clip_folder}", parts, "--out", tmp_path / "out"))
    assert "not fitted" not in printed


def test_a_batch_of_remembered_things_is_fitted_with_their_memory(learnable, parts):
    records = read_dataset(parts).of(split="test", classes=["mug"])
    learnable.remember([record.image for record in records if not record.anomalous], name="mug")
    top = []
    for record in records:
        image = learnable.tensor_of(open_picture(record.image))[None]
        text, memory = learnable.class_embedding("mug")[None], learnable.memory_of("mug")
        scores = learnable.scores(image, text, memory=memory)
        top.append([scores.classification_B.item(), scores.top_B.item(), record.anomalous])
    expected = Logistic.fit(*torch.tensor(top).T)
    fit_scores(learnable, records)
    found = learnable.score
    assert (found.a, found.b, found.c) == pytest.approx((expected.a, expected.b, expected.c), rel=1e-3, abs=1e-5)
