"""`aaclip inspect grads`: the norms are those of the losses' gradients, and a closed gate starves nobody."""

import csv
import shutil

import pytest
import torch
from helpers.commands import refused, succeeded

from aaclip.data import collate, read_dataset
from aaclip.data.selection import shuffle_records
from aaclip.detector.files import read_detector
from aaclip.models.backbone import load_backbone, make_model
from aaclip.models.prompts import load_prompts
from aaclip.training.fits import Job, embed_training_classes, make_dataset
from aaclip.training.gradients import MODES, GradientRow, format_gradients, inspect_gradients
from aaclip.training.modules import ImageStage
from clip_common.config import apply_overrides

MODULES = [
    "text cross-attention",
    "text adapter 0",
    "text projection",
    "image cross-attention",
    "image adapter 0",
    "image adapter 1",
    "heads",
]


def test_norms_of_adapters_by_hand(trained, parts, tmp_path):
    """One batch of the image stage without cross-attention, with autograd instead of the module under test."""
    run = trained("stages.image.batch_size=20")
    found = inspect_gradients(run, parts, images=20, out=tmp_path)
    stored = read_detector(run)
    config = apply_overrides(stored.config, ["augment.crop=1"])
    records = shuffle_records(read_dataset(parts).records, seed=0)[:20]
    model = make_model(load_backbone(config.backbone), config)
    model.load_state_dict(dict(stored.state), strict=False)
    job = Job(config, "both", records, model, load_prompts(config.prompts))
    stage = ImageStage(model, config.stages.image, config.loss, classes=embed_training_classes(job, {}), contexts={})
    dataset = make_dataset(model, records, config, colour=False)
    dataset.augment = None
    loss = stage.eval().compute_losses(collate([dataset[index] for index in range(20)]))["loss"]
    grads = torch.autograd.grad(loss, list(model.image_adapter.layers[1].parameters()))
    expected = torch.cat([grad.flatten() for grad in grads]).norm().item()
    for row in found.rows:
        if row.module == "image adapter 1":
            assert row.alone == pytest.approx(expected, rel=1e-4)


def test_every_mode_and_module_has_a_row_a_file_and_a_bar(aaclip, trained, other_parts, tmp_path):
    run = shutil.copytree(trained("cross_attention.enabled=true"), tmp_path / "run")
    printed = succeeded(aaclip("inspect", "grads", run, other_parts, "--images", 8))
    for name in ("gradient norms, 8 images", "image", "heads"):
        assert name in printed
    folder = run / f"gradients-{other_parts.name}"
    with (folder / "gradients.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["mode"], row["module"]) for row in rows] == [(mode, name) for mode in MODES for name in MODULES]
    for row in rows:
        assert float(row["share"]) == pytest.approx(float(row["together"]) / float(row["alone"]))
    assert "cross-attention" in (folder / "gradients.md").read_text(encoding="utf-8")
    assert (folder / "gradients.png").stat().st_size > 0
    alone = {(row["mode"], row["module"]): row["alone"] for row in rows}
    for name in MODULES:  # adapters alone do not depend on how cross-attention would be scaled; attention does
        values = {alone[mode, name] for mode in MODES}
        assert len(values) == (3 if "cross" in name else 1), name


def test_beside_a_closed_gate_every_module_keeps_its_gradient(trained, other_parts, tmp_path):
    """A base run gets untrained cross-attention; closed, it changes nothing but has a gradient of its own."""
    found = inspect_gradients(trained(), other_parts, images=8, out=tmp_path)
    assert found.gates == (0, 0)
    shares = {row.module: row.share for row in found.rows if row.mode == "gate"}
    assert {name: shares[name] for name in MODULES if "cross" not in name} == {
        name: pytest.approx(1, rel=1e-4) for name in MODULES if "cross" not in name
    }
    assert next(row for row in found.rows if row.mode == "gate").together > 0


def test_a_trained_gate_is_the_run_s(trained, other_parts, tmp_path):
    run = trained("cross_attention.enabled=true", "cross_attention.scale=gate")
    state = read_detector(run).state
    gates = inspect_gradients(run, other_parts, images=4, out=tmp_path).gates
    assert gates == tuple(state[f"{part}_cross_attn.gate"].item() for part in ("text", "image"))


def test_a_head_for_the_image_as_a_whole_has_a_row_of_its_own(trained, other_parts, tmp_path):
    found = inspect_gradients(trained("heads.detection=mean"), other_parts, images=4, out=tmp_path)
    assert [row.together > 0 for row in found.rows if row.module == "detection head"] == [True] * len(MODES)


def test_rows_as_text():
    rows = [
        GradientRow(mode, name, alone=alone, together=0.5) for mode in MODES for name, alone in (("a", 2.0), ("b", 0.0))
    ]
    heading, first, second = format_gradients(rows)
    assert heading[:4] == ["module", "unscaled: alone", "unscaled: together", "unscaled: share"]
    assert first == ["a", *["2", "0.5", "0.250"] * 3]
    assert second == ["b", *["0", "0.5", "–"] * 3]


def test_what_cannot_be_measured_is_one_line(aaclip, trained, tmp_path):
    refused(aaclip("inspect", "grads", tmp_path / "gone", tmp_path), "no such folder")
    refused(aaclip("inspect", "grads", trained(), tmp_path / "gone"), "no such folder")
    refused(aaclip("inspect", "grads", "tiny", tmp_path), "no such folder")
