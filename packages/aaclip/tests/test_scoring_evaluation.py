"""Labelled sets to numbers: the same as sklearn's on images scored one by one; sets that lack what a metric takes."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from aaclip.data import DataError, Record
from aaclip.data.selection import check_not_trained_on
from aaclip.scoring.evaluation import evaluate
from aaclip.scoring.metrics import METRICS
from aaclip.scoring.score import read_test_records, remember_training_split, score, write_results
from clip_common.images import read_image, read_mask
from clip_common.runs import read_rows

IMAGE = [name for name in METRICS if name.startswith("image/")]
PIXEL = [name for name in METRICS if name.startswith("pixel/")]


@pytest.fixture(scope="session")
def other_parts(tmp_path_factory) -> Path:
    """Two kinds that `parts` lacks."""
    from clip_common.synthetic import write_mvtec

    return write_mvtec(
        tmp_path_factory.mktemp("other") / "parts", kinds=("key", "lamp"), train=1, good=3, damaged=1, size=40, seed=2
    )


def test_the_numbers_are_sklearns_on_images_scored_one_by_one(detector, other_parts):
    records = read_test_records(other_parts)
    assert all(record.split == "test" for record in records)
    found = evaluate(detector, records, batch_size=5, samples=20)
    assert found.images == {"key": 9, "lamp": 9}  # 3 flawless, 6 kinds of damage
    for name, values in found.classes.items():
        own = [record for record in records if record.class_name == name]
        scores = [detector.predict(record.image, name=name).score for record in own]
        labels = [record.anomalous for record in own]
        assert values["image/auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        assert values["image/ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)
        low, high = found.intervals[name]["image/auroc"]
        assert 0 <= low <= values["image/auroc"] <= high <= 1

        pixels, marked = [], []
        for record in own:
            side = (detector.size, detector.size)
            heat = Image.fromarray(detector.predict(Image.open(record.image).convert("RGB").resize(
                side, Image.Resampling.BICUBIC), name=name).heatmap_HW)  # fmt: skip
            pixels.append(np.asarray(heat).ravel())
            mask = read_mask(record.mask, size=(40, 40)) if record.mask else np.zeros((40, 40), bool)
            marked.append(np.asarray(Image.fromarray(mask).resize(side, Image.Resampling.NEAREST)).ravel())
        expected = roc_auc_score(np.concatenate(marked), np.concatenate(pixels))
        assert values["pixel/auroc"] == pytest.approx(expected, abs=1e-3)
    mean = np.mean([values["image/auroc"] for values in found.classes.values()])
    assert found.mean["image/auroc"] == pytest.approx(mean)


@pytest.mark.parametrize("domain", ["industrial", "medical"])
def test_official_scores_are_relative_to_the_class(detector, other_parts, domain):
    """The released code's few lines, on maps of single images."""
    detector.config = replace(detector.config, score=replace(detector.config.score, image="official", domain=domain))
    records = read_test_records(other_parts)
    found = evaluate(detector, records, batch_size=4, samples=5)
    for name, values in found.classes.items():
        own = [record for record in records if record.class_name == name]
        tensors = torch.stack([detector.tensor_of(read_image(record.image)) for record in own])
        text_D2 = detector.class_embedding(name)
        alone = [detector.scores(image_3SS[None], text_D2[None]) for image_3SS in tensors]
        maps = np.concatenate([one.maps_BSS.numpy() for one in alone])
        with torch.inference_mode():
            cosines = (detector.model.features(tensors).detection @ text_D2)[:, 1].numpy()
        maps, cosines = ((x - x.min()) / (x.max() - x.min()) for x in (maps, (cosines + 1) / 2))
        peaks = maps.max(axis=(1, 2))
        scores = peaks if domain == "medical" else 0.5 * peaks + 0.5 * cosines
        labels = [record.anomalous for record in own]
        assert values["image/auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
        assert values["image/ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-5)


def test_normal_images_of_the_training_split_are_remembered(detector, other_parts):
    without = evaluate(detector, read_test_records(other_parts), samples=5)
    remember_training_split(detector, other_parts, images=1)
    assert {name: memory.images for name, memory in detector.memories.items()} == {"key": 1, "lamp": 1}
    with_memory = evaluate(detector, read_test_records(other_parts), samples=5)
    assert with_memory.classes["key"]["pixel/auroc"] != without.classes["key"]["pixel/auroc"]
    with pytest.raises(DataError, match=r"--memory 2: the training split of .* has 1 normal images of key"):
        remember_training_split(detector, other_parts, images=2)


def test_batches_order_and_progress_change_no_number(detector, other_parts):
    records, steps = read_test_records(other_parts), []
    one = evaluate(detector, records, batch_size=1, samples=5, progress=lambda *step: steps.append(step))
    many = evaluate(detector, records[::-1], batch_size=7, samples=5)
    assert steps == [(done, 18) for done in range(1, 19)]
    for name, values in one.classes.items():
        assert many.classes[name] == pytest.approx(values, abs=1e-6)


def outputs(found, folder: Path) -> tuple[dict, list[dict], str]:
    """What the three files say."""
    files = write_results(folder, found.classes, found.intervals, title="t", note="n")
    with files[1].open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return json.loads(files[0].read_text(encoding="utf-8")), rows, files[2].read_text(encoding="utf-8")


def test_a_set_of_normal_images_has_no_numbers(detector, other_parts, tmp_path):
    records = [record for record in read_test_records(other_parts) if not record.anomalous]
    found = evaluate(detector, records, samples=5)
    assert found.classes["key"] == dict.fromkeys(METRICS)
    assert found.intervals["key"] == {}
    assert found.mean == dict.fromkeys(METRICS)
    whole, rows, text = outputs(found, tmp_path)
    assert whole["classes"]["lamp"]["image/auroc"] is None
    assert [row["image/auroc"] for row in rows] == ["", ""]
    assert text.count("n/a") >= 3 * len(METRICS)  # two classes and the mean


def test_a_set_of_anomalous_images_has_numbers_of_pixels_alone(detector, other_parts, tmp_path):
    records = [record for record in read_test_records(other_parts) if record.anomalous]
    found = evaluate(detector, records, samples=5)
    values = found.classes["key"]
    assert [values[name] for name in IMAGE] == [None] * len(IMAGE)
    assert all(0 <= values[name] <= 1 for name in PIXEL)
    assert set(found.intervals["key"]) == set(PIXEL)
    assert outputs(found, tmp_path)[0]["mean"]["image/auroc"] == {"value": None, "classes": 0}


def test_a_class_without_masks_has_numbers_of_images_alone(detector, other_parts):
    records = [
        Record(record.image, record.class_name, record.split, record.anomalous, mask=None, defect=record.defect)
        for record in read_test_records(other_parts)
    ]
    values = evaluate(detector, records, samples=5).classes["key"]
    assert all(0 <= values[name] <= 1 for name in IMAGE)
    assert [values[name] for name in PIXEL] == [None] * len(PIXEL)


def test_one_mask_that_is_missing_takes_its_image_from_the_pixels_alone(detector, other_parts):
    records = [record for record in read_test_records(other_parts) if record.class_name == "key"]
    lost = next(record for record in records if record.mask)
    without = [record for record in records if record is not lost]
    unmasked = [*without, Record(lost.image, "key", "test", True, mask=None, defect=lost.defect)]
    whole, part, few = (evaluate(detector, some, samples=5).classes["key"] for some in (records, unmasked, without))
    assert {name: part[name] for name in PIXEL} == pytest.approx({name: few[name] for name in PIXEL})
    assert {name: part[name] for name in IMAGE} == pytest.approx({name: whole[name] for name in IMAGE})


@pytest.mark.parametrize("name", ["Schraube, groß", "螺丝", "[b]x|*", "metal_nut"])
def test_one_class_of_any_name(detector, other_parts, tmp_path, name):
    root = tmp_path / "set" / name
    shutil.copytree(other_parts / "key", root)
    found = evaluate(detector, read_test_records(tmp_path / "set"), samples=5)
    assert list(found.classes) == [name]
    whole, rows, _ = outputs(found, tmp_path / "out")
    assert list(whole["classes"]) == [name] == [row["class"] for row in rows]


def test_nothing_to_test_on(detector):
    with pytest.raises(ValueError, match="no image to test on"):
        evaluate(detector, [])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_damaged_image_and_a_mask_of_another_size_do_not_stop_the_others(detector, other_parts, tmp_path, workers):
    records = read_test_records(Path(shutil.copytree(other_parts, tmp_path / "copy")))
    small, cut = [record for record in records if record.class_name == "key" and record.mask][:2]
    gone = next(record for record in records if record.class_name == "lamp" and not record.mask)
    Image.new("L", (7, 7), 255).save(small.mask)
    cut.image.write_bytes(cut.image.read_bytes()[:100])
    gone.image.unlink()
    steps = []
    found = evaluate(
        detector, records, samples=5, batch_size=2, workers=workers, progress=lambda *step: steps.append(step)
    )
    bad = [small, cut, gone]
    rest = evaluate(detector, [record for record in records if record not in bad], samples=5)
    assert found.images == rest.images == {"key": 7, "lamp": 8}
    for name, values in found.classes.items():
        assert values == pytest.approx(rest.classes[name], abs=1e-6)
    assert list(found.failures) == [str(record.image) for record in bad]
    problems = "a mask of 7x7 pixels, but its image has 40x40", "not a readable image", "no such file"
    for problem, told in zip(problems, found.failures.values(), strict=True):
        assert problem in told
        assert "\n" not in told
    assert steps[-1] == (18, 18)
    assert rest.failures == {}


def test_a_class_of_which_nothing_can_be_read_is_left_out(detector, other_parts, tmp_path):
    records = read_test_records(Path(shutil.copytree(other_parts, tmp_path / "copy")))
    for record in records:
        if record.class_name == "key":
            record.image.write_text("no")
    found = evaluate(detector, records, samples=5)
    assert (list(found.classes), list(found.intervals), found.images) == (["lamp"], ["lamp"], {"lamp": 9})
    assert len(found.failures) == 9
    with pytest.raises(DataError, match=r"none of 9 images could be read, first .*key.*: not a readable image"):
        evaluate(detector, [record for record in records if record.class_name == "key"])


def images_of(root: Path) -> list[Path]:
    return [record.image for record in read_test_records(root)]


def test_images_that_were_trained_on_are_refused_wherever_they_lie(trained, parts, other_parts, tmp_path):
    run = trained()
    copy = Path(shutil.copytree(parts, tmp_path / "renamed"))
    for root in (parts, copy):
        for source in (run, run / "model"):
            with pytest.raises(DataError, match=r"16 of 16 images to test on are among those that .* learned from"):
                check_not_trained_on(source, images_of(root))
    check_not_trained_on(run, images_of(other_parts))
    check_not_trained_on(Path("tiny"), images_of(parts))  # no run: plain CLIP learned from none of them


def test_one_image_among_others_is_refused(trained, parts, other_parts):
    shared = images_of(parts)[5]
    with pytest.raises(DataError, match=rf"1 of 19 images .* first {shared}"):
        check_not_trained_on(trained(), [*images_of(other_parts), shared])


def test_score_evaluates_writes_and_registers(trained, other_parts, tmp_path):
    run = trained()
    scored = score(run, other_parts, out=tmp_path / "results", memory=1)
    assert scored.images == 18
    assert scored.title == f"{run.name} on {other_parts.name}"
    assert [file.name for file in scored.files] == ["results.json", "results.csv", "results.md"]
    whole = json.loads(scored.files[0].read_text(encoding="utf-8"))
    assert whole["classes"] == scored.evaluation.classes
    assert "1 normal images of each class remembered" in whole["note"]
    row = read_rows(run.parent.parent / "registry.csv")[-1]
    assert (row["name"], row["split"], row["set"]) == (run.name, "test", other_parts.name)
    assert float(row["image/auroc"]) == pytest.approx(scored.evaluation.mean["image/auroc"])


def test_score_refuses_what_the_run_learned_from_and_leaves_nothing(trained, parts, tmp_path):
    with pytest.raises(DataError, match="16 of 16 images to test on"):
        score(trained(), parts, out=tmp_path / "results")
    assert not (tmp_path / "results").exists()
