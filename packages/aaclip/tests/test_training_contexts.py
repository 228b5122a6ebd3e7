"""Both stages with cross-attention: what it changes, what each field does, kill and resume, where a training starts."""

import subprocess
import sys

import pytest
import torch
from helpers.runs import kill_when, same, weights

from aaclip.config import Config
from aaclip.detector.detector import Detector
from aaclip.detector.files import CONTEXTS
from aaclip.training.experiment import train
from clip_common.config import load_config
from clip_common.runs import read_rows
from clip_common.tensors import read_tensors

# the CLIP of these tests is random: it need not find a defect
pytestmark = pytest.mark.filterwarnings("ignore:image score not fitted")

ON = "cross_attention.enabled=true"
UNTRAINED = ("stages.text.epochs=0", "stages.image.epochs=0")


def contexts(run):
    return read_tensors(run / "model" / CONTEXTS)


def scores(run, parts):
    detector = Detector.from_pretrained(run)
    files = sorted((parts / "mug" / "test").rglob("*.png"))
    return [one.score for one in detector.predict(files, name="mug")]


def test_training_changes_both_modules_and_lowers_the_loss(trained):
    run = trained(ON, "stages.text.epochs=6", "stages.image.epochs=6")
    start = weights(trained(ON, *UNTRAINED))
    for name in ("text_cross_attn", "image_cross_attn"):
        for part in ("q", "k", "v", "out"):
            key = f"{name}.{part}_proj.weight"
            assert not torch.equal(weights(run)[key], start[key]), key
    for phase in ("text", "image"):
        losses = [float(row["train/loss"]) for row in read_rows(run / "metrics.csv") if row["phase"] == phase]
        assert sum(losses[-2:]) < sum(losses[:2]), phase


def test_without_weight_a_training_is_the_base_s_bit_for_bit(trained, parts):
    run, base = trained(ON, "cross_attention.weight=0"), trained()
    still, own = weights(run), weights(base)
    assert {name: still[name] for name in own}.keys() == own.keys()
    assert all(torch.equal(still[name], value) for name, value in own.items())
    assert scores(run, parts) == scores(base, parts)
    assert not (base / "model" / CONTEXTS).exists()


@pytest.mark.parametrize(
    "override",
    [
        "enabled=false",
        "heads=4",
        "dropout=0",
        "scale=gate",
        "weight=0.5",
        "norm_match=false",
        "context=batch",
        "padding=kept",
        "at_test=false",
    ],
)
def test_each_field_changes_the_weights_that_come_out(trained, override):
    assert not same(weights(trained(ON)), weights(trained(ON, f"cross_attention.{override}")))


def test_the_gate_opens(trained):
    found = weights(trained(ON, "cross_attention.scale=gate"))
    assert found["text_cross_attn.gate"] != 0
    assert found["image_cross_attn.gate"] != 0


def test_cached_views_serve_the_contexts_too(trained):
    cached, computed = (trained(ON, *more) for more in (["stages.text.cache_features=2"], []))
    for one, other in zip(*(read_rows(run / "metrics.csv")[:4] for run in (cached, computed)), strict=True):
        assert float(one["train/loss"]) == pytest.approx(float(other["train/loss"]), rel=2e-3)
    for name, value in contexts(computed).items():
        torch.testing.assert_close(contexts(cached)[name], value, atol=2e-3, rtol=2e-3)


def test_stage_two_attends_to_the_stored_context(trained):
    """Where stage 2 was not trained, classes and contexts are already those of the whole training."""
    whole, first = trained(ON), trained(ON, "stages.image.epochs=0")
    assert same(contexts(whole), contexts(first))
    assert all(torch.equal(weights(whole)[f"classes.{row}"], weights(first)[f"classes.{row}"]) for row in range(2))
    assert contexts(whole)["image.0"].shape == (16, 24)
    assert not torch.equal(contexts(whole)["image.0"], contexts(whole)["image.1"])


def test_without_stage_one_the_contexts_are_means_over_the_training_images(trained, parts):
    run = trained(ON, "stages.text.epochs=0")
    detector = Detector.from_pretrained(run)
    files = sorted((parts / "mug").rglob("*.png"))
    files = [file for file in files if "ground_truth" not in file.parts]
    images = torch.stack([detector.tensor_of(picture) for picture in map(open_rgb, files)])
    expected = detector.model.frozen_patches(images)[0].mean(dim=0)
    torch.testing.assert_close(detector.contexts.image["mug"], expected, atol=1e-3, rtol=1e-3)


def open_rgb(file):
    from clip_common.images import read_image

    return read_image(file)


def test_at_test_false_leaves_tests_to_the_adapters(trained):
    run = trained(ON, "cross_attention.at_test=false")
    assert not (run / "model" / CONTEXTS).exists()
    assert "image_cross_attn.q_proj.weight" in weights(run)
    detector = Detector.from_pretrained(run)
    assert detector.contexts is None
    assert detector.text_contexts(["mug"]) is None
    image = torch.randn(1, 3, 32, 32)
    detector.scores(image, detector.class_embedding("mug")[None])


def test_a_class_that_no_batch_showed_has_the_mean_context(small, tmp_path):
    """Batches are whole: of three images in steps of two, an epoch leaves one out."""
    from clip_common.synthetic import write_mvtec

    kinds = {"key", "mug", "star"}
    root = write_mvtec(tmp_path / "few", kinds=sorted(kinds), defects=("hole",), train=1, good=0, damaged=0, size=32)
    more = [f"data.root={root}", "stages.text.epochs=1", "stages.text.batch_size=2", "stages.image.batch_size=1"]
    detector = train(load_config(Config, overrides=[*small, *more, ON])).detector
    (unseen,) = kinds - detector.contexts.image.keys()
    seen = torch.stack(list(detector.contexts.image.values()))
    torch.testing.assert_close(detector.contexts.image_of(unseen), seen.mean(dim=0))
    assert detector.classes.keys() == detector.contexts.text.keys() == kinds


SCRIPT = """
import sys
from aaclip.training.experiment import resolve, train
train(resolve(overrides=sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "step"), [("text", 3), ("image", 2)])
def test_killed_in_either_stage_and_resumed_equals_uninterrupted(small, trained, tmp_path, phase, step):
    longer = "stages.image.epochs=10"
    settings = [*small, ON, longer, "name=killed", "trainer.checkpoint_every=1"]
    run = tmp_path / "runs" / "aaclip" / "killed"

    def reached():
        rows = read_rows(run / "metrics.csv") if (run / "metrics.csv").exists() else []
        return any(row["phase"] == phase and int(row["step"]) >= step for row in rows)

    kill_when(reached, [sys.executable, "-c", SCRIPT, *settings])
    train(load_config(Config, config=run / "config.yaml"), resume=run)
    assert same(weights(run), weights(trained(ON, longer)))
    assert same(contexts(run), contexts(trained(ON, longer)))


def test_stage_by_stage_equals_at_once(small, trained):
    first = train(load_config(Config, overrides=[*small, ON, "name=halves"]), stage="text").run
    train(load_config(Config, config=first.path / "config.yaml"), resume=first.path)
    assert same(weights(first.path), weights(trained(ON)))
    assert same(contexts(first.path), contexts(trained(ON)))


# ---- where a training starts ----


@pytest.mark.parametrize("still", ["cross_attention.scale=gate", "cross_attention.weight=0"])
def test_a_base_run_starts_one_with_cross_attention_unchanged(trained, parts, still):
    base = trained()
    run = trained(ON, still, f"start={base}", *UNTRAINED)
    own = weights(run)
    assert all(torch.equal(own[name], value) for name, value in weights(base).items())
    assert scores(run, parts) == scores(base, parts)


def test_a_run_starts_where_another_ended(trained):
    for start in (trained(), trained(ON)):
        run = trained(ON, f"start={start}", *UNTRAINED)
        begun, ended = weights(run), weights(start)
        kept = [name for name in ended if not name.startswith("classes.")]
        assert all(torch.equal(begun[name], ended[name]) for name in kept)
        assert begun.keys() == weights(trained(ON)).keys()
    assert not same(weights(trained(ON, f"start={trained()}")), weights(trained(ON)))


@pytest.mark.parametrize(
    ("with_cross", "more", "match"),
    [
        (True, [], r"was trained with cross-attention, which this configuration leaves out: set cross_attention"),
        (False, ["adapters.kind=linear"], r"was trained with adapters.kind=bottleneck, which this configuration"),
        (True, [ON, "cross_attention.scale=gate"], r"1 missing, such as image_cross_attn.gate|2 missing"),
    ],
)
def test_a_start_of_another_kind_is_one_line(small, trained, tmp_path, with_cross, more, match):
    start = trained(*([ON] if with_cross else []))
    with pytest.raises(ValueError, match=match) as error:
        train(load_config(Config, overrides=[*small, f"start={start}", *more]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_start_of_another_clip_or_of_nothing_is_one_line(small, trained, other_clip, tmp_path):
    for more, match in (
        ([f"start={tmp_path / 'gone'}"], r"gone: no such folder"),
        ([f"start={trained()}", f"backbone.name=local-dir:{other_clip}"], r"start=.* is of another model"),
    ):
        with pytest.raises(ValueError, match=match) as error:
            train(load_config(Config, overrides=[*small, *more]))
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_two_ranks_leave_one_model_with_a_context_of_each_class(small, tmp_path, trained, parts):
    script = tmp_path / "script.py"  # a file: Lightning starts the second rank by the same command
    script.write_text("from aaclip.cli.main import app\n\napp()\n", encoding="utf-8")
    given = [*small, "name=two", ON, "trainer.devices=cpu:2", "trainer.strategy=ddp"]
    process = subprocess.run([sys.executable, script, "train", *given], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    (run,) = (tmp_path / "runs" / "aaclip").iterdir()
    one = trained(ON)
    found, expected = contexts(run), contexts(one)
    assert found.keys() == expected.keys()
    assert {name: tensor.shape for name, tensor in found.items()} == {name: of.shape for name, of in expected.items()}
    for name, tensor in found.items():
        assert tensor.isfinite().all(), name
        assert tensor.abs().sum() > 0, name
    assert not same(weights(run), weights(trained(ON, *UNTRAINED)))
    assert all(0 <= score <= 1 for score in scores(run, parts))
    phases = [row["phase"] for row in read_rows(run / "metrics.csv")]
    assert set(phases) == {"text", "image"}
