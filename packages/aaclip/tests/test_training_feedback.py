"""Feedback loops: what each one reads and trains, what it leaves, what every field does."""

import csv
import json
import shutil

import pytest
import torch
from helpers.commands import refused, succeeded
from helpers.runs import same, weights

from aaclip.data.selection import HELD_OUT_LIST, load_list, read_hashes
from aaclip.detector.detector import Detector
from aaclip.detector.files import list_loops
from aaclip.training.experiment import resolve as resolve_training
from aaclip.training.experiment import train
from aaclip.training.feedback import configure_loop, has_plateau, resolve
from clip_common.config import ConfigError, load_config
from clip_common.runs import Run
from clip_common.tensors import read_tensors

# the CLIP of these tests is random: it need not find a defect
pytestmark = pytest.mark.filterwarnings("ignore:image score not fitted")

SHORT = ("feedback.text_epochs=[2,1]", "feedback.image_epochs=[2,1]", "feedback.loops=2", "feedback.held_out=0.4")
"""Of the fixture `looped` too."""
NO_PLATEAU = ("feedback.held_out=0", "feedback.plateau_patience=null")


def loop_weights(run, loop):
    return read_tensors(list_loops(run)[loop])


def changed(run, before, after):
    """Names of the weights that differ between two loops; loop 0 is an untrained model, or the start."""
    one, other = (loop_weights(run, loop) for loop in (before, after))
    return {name for name in one if name in other and not torch.equal(one[name], other[name])}


def test_a_run_of_loops_is_complete(aaclip, small, tmp_path, parts):
    printed = succeeded(aaclip("feedback", *small, *SHORT, "name=loops"))
    run = tmp_path / "runs" / "aaclip" / "loops"
    assert f"aaclip compare {run}" in printed.replace("\n", "")
    for word in ("text loss", "pixel AUROC", "held-out images: 8"):
        assert word in printed
    assert list(Run.open(run).ledger.phases()) == [
        "model",
        *(f"loop{loop}-{part}" for loop in (1, 2) for part in ("text", "image", "score")),
    ]
    assert list(list_loops(run)) == [1, 2]
    held = load_list(run / HELD_OUT_LIST, root=parts)
    kinds = [(record.class_name, record.anomalous) for record in held]
    # 4 flawless and 6 damaged images of each of two kinds, of which 40 % are 2 and 2
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("mug", False): 2, ("mug", True): 2, ("star", False): 2, ("star", True): 2}  # fmt: skip
    assert len(read_hashes(run / "training.json")) == 20
    result = json.loads((run / "result.json").read_text())
    assert result["images"] == 12
    assert [set(row) for row in result["loops"]] == [
        {"text/loss", "image/loss", "image/auroc", "pixel/auroc", "pixel/aupro"}
    ] * 2
    last = {name: value for name, value in loop_weights(run, 2).items() if not name.startswith("contexts.")}
    assert same(weights(run), last)
    detector, loop = Detector.from_pretrained(run), Detector.open(run / "loop_2_final.safetensors")
    photo = sorted((parts / "mug" / "test").rglob("*.png"))[0]
    assert detector.predict(photo, name="mug").score == loop.predict(photo, name="mug").score
    assert loop.predict(photo, name="a new thing").score > 0
    assert (run / "plots" / "loss.png").exists()
    with (tmp_path / "runs" / "registry.csv").open() as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == ["loops"]


def test_the_first_loop_is_a_training_with_cross_attention(looped, trained):
    run = looped("feedback.loops=1", "feedback.milestones=[1.0]", *NO_PLATEAU)
    assert same(weights(run), weights(trained("cross_attention.enabled=true")))


def test_later_loops_read_what_the_loop_before_trained(looped, monkeypatch):
    from aaclip.models import AnomalyModel

    seen = []
    original = AnomalyModel.trained_patches

    def spy(model, images, context=None):
        assert not model.image_cross_attn.training  # no dropout in a frozen tower
        seen.append(
            (context is not None, {name: value.clone() for name, value in model.image_adapter.state_dict().items()})
        )
        return original(model, images, context)

    monkeypatch.setattr(AnomalyModel, "trained_patches", spy)
    run = looped("trainer.accumulate=1", "feedback.lr_decay=0.4")
    assert len(seen) == 1  # one epoch of one batch of 12 images, 8 at a time
    assert seen[0][0]
    first = loop_weights(run, 1)
    assert all(torch.equal(value, first[f"image_adapter.{name}"]) for name, value in seen[0][1].items())


def test_trained_patches_by_hand(detector, parts):
    from torch.nn.functional import normalize

    model = detector.model
    files = sorted((parts / "mug" / "test").rglob("*.png"))[:2]
    images = torch.stack([detector.tensor_of(open_rgb(file)) for file in files])
    features = model.features(images)
    for patches, level in zip(model.trained_patches(images), features.levels, strict=True):
        assert torch.equal(patches, level + normalize(model.image_tower.pooled(images), dim=-1)[:, None])
    assert patches.shape == model.frozen_patches(images)[-1].shape


def open_rgb(file):
    from clip_common.images import read_image

    return read_image(file)


def test_epochs_rates_and_seeds_of_loops(small):
    config = resolve(overrides=[*small, "feedback.loops=4"])
    loops = [configure_loop(config, loop) for loop in range(1, 5)]
    assert [(one.stages.text.epochs, one.stages.image.epochs) for one in loops] == [(5, 20), (3, 10), (2, 5), (2, 5)]
    assert [one.stages.image.lr for one in loops] == pytest.approx([5e-4, 2.5e-4, 1.25e-4, 6.25e-5])
    assert [one.stages.text.lr for one in loops] == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4])
    assert loops[0].trainer.seed == config.trainer.seed
    assert len({one.trainer.seed for one in loops}) == 4
    decayed = resolve(overrides=[*small, "feedback.loops=10", "feedback.epochs_decay=0.8"])
    # max(1, int(5 · .8ⁿ⁻¹)) and max(2, int(20 · .8ⁿ⁻¹)) by hand
    assert [decayed.feedback.epochs(loop) for loop in range(1, 11)] == [
        (5, 20), (4, 16), (3, 12), (2, 10), (2, 8), (1, 6), (1, 5), (1, 4), (1, 3), (1, 2)]  # fmt: skip


def test_the_second_version_of_the_fork_is_a_preset():
    config = resolve(config="feedback_v2")
    assert config.cross_attention.enabled
    assert (config.feedback.loops, config.feedback.optimizer, config.feedback.lr_decay) == (5, "adamw", 0.8)
    assert [config.feedback.epochs(loop) for loop in (1, 5)] == [(5, 15), (5, 15)]
    assert (config.stages.text.lr, config.stages.image.lr, config.trainer.grad_clip) == (2e-5, 5e-3, 1.0)


@pytest.mark.parametrize(
    "override",
    [
        "feedback.loops=1",
        "feedback.text_epochs=[2,2]",
        "feedback.image_epochs=[1]",
        "feedback.epochs_decay=1",
        "feedback.lr_decay=1",
        "feedback.milestones=[0.1]",
        "feedback.held_out=0.2",
        "feedback.cross_attention_start_loop=2",
        "cross_attention.enabled=false",
        "cross_attention.at_test=false",
        "cross_attention.context=batch",
    ],
)
def test_each_field_changes_the_weights_that_come_out(looped, override):
    assert not same(weights(looped(override)), weights(looped()))


def test_fields_of_adamw(looped):
    base = ("feedback.optimizer=adamw", "feedback.text_epochs=[2]", "feedback.image_epochs=[2]")
    runs = [looped(*base, "feedback.warmup_epochs=1", *more) for more in ([], ["feedback.weight_decay=0.5"])]
    runs += [
        looped(*base, "feedback.warmup_epochs=0.5"),
        looped("feedback.text_epochs=[2]", "feedback.image_epochs=[2]"),
    ]
    for index, run in enumerate(runs):
        assert not any(same(weights(run), weights(other)) for other in runs[:index])
    rates = [float(row["lr"]) for row in Run.open(runs[0]).metrics.rows() if row["phase"] == "loop1-image"]
    # 12 images, 8 at a time, 2 epochs: warmup in the first step, then cosine from the peak of 5e-4 to half of it
    assert rates == pytest.approx([5e-4, 5e-4])


def test_cross_attention_from_the_second_loop_on(looped):
    run = looped("feedback.cross_attention_start_loop=2")
    first, second = (Detector.open(file) for file in list_loops(run).values())
    assert first.contexts is None
    assert second.contexts is not None
    moved = changed(run, 1, 2)
    assert "text_cross_attn.q_proj.weight" in moved
    start = loop_weights(run, 1)
    untrained = loop_weights(looped("feedback.cross_attention_start_loop=2", "feedback.lr_decay=0.9"), 1)
    assert torch.equal(start["image_cross_attn.q_proj.weight"], untrained["image_cross_attn.q_proj.weight"])


@pytest.mark.parametrize(
    ("freeze", "trained_parts"),
    [
        ("adapters", {"text_cross_attn", "image_cross_attn"}),
        (
            "variant_b",
            {
                "text_cross_attn",
                "image_cross_attn",
                "text_adapter.layers.0",
                "image_adapter.layers.0",
                "image_adapter.segmentation.0",
            },
        ),
    ],
)
def test_freeze_modes_train_these_parts_alone(looped, trained, freeze, trained_parts):
    base = trained()
    run = looped(f"start={base}", f"feedback.freeze={freeze}", *NO_PLATEAU)
    before, after = weights(base), weights(run)
    moved = {name for name in before if not name.startswith("classes.") and not torch.equal(before[name], after[name])}
    moved |= {name for name in changed(run, 1, 2) if not name.startswith(("classes.", "contexts."))}
    assert {part for part in trained_parts if any(name.startswith(part) for name in moved)} == trained_parts
    assert all(name.startswith(tuple(trained_parts)) for name in moved), moved


def test_variant_b_of_a_text_tower_without_adapters_trains_what_there_is(looped, trained):
    none = "adapters.text_blocks=0"
    run = looped(none, f"start={trained(none)}", "feedback.freeze=variant_b", *NO_PLATEAU)
    assert any(name.startswith("text_cross_attn") for name in changed(run, 1, 2))


def figures(*means):
    return [{"image/auroc": mean, "pixel/auroc": mean, "pixel/aupro": None} for mean in means]


@pytest.mark.parametrize(
    ("means", "more", "stops"),
    [
        ((0.5, 0.505, 0.509), [], True),  # two loops in a row below 0.51
        ((0.5, 0.505, 0.512), [], False),
        ((0.5, 0.4, 0.52, 0.5), [], False),
        ((0.5, 0.505), [], False),
        ((0.5, 0.505), ["feedback.plateau_patience=1"], True),
        ((0.5, 0.505), ["feedback.plateau_patience=1", "feedback.plateau_threshold=0.001"], False),
        ((0.5, 0.1, 0.1, 0.1), ["feedback.plateau_patience=null"], False),
    ],
)
def test_a_plateau_by_hand(means, more, stops):
    assert has_plateau(figures(*means), resolve(overrides=more)) is stops


def test_a_plateau_ends_the_loops(aaclip, small):
    more = ["feedback.loops=4", "feedback.plateau_patience=1", "feedback.plateau_threshold=0.9", "name=flat"]
    printed = succeeded(aaclip("feedback", *small, *SHORT, *more))
    assert "ended after loop 2 of 4: no gain on the held-out images" in printed


def test_loops_compared_on_held_out_images_and_on_a_set(aaclip, looped, other_parts, tmp_path):
    run = shutil.copytree(looped(), tmp_path / "run")
    printed = succeeded(aaclip("compare", run))
    for word in ("loop 1", "loop 2", "text loss", "on held-out"):
        assert word in printed.replace("\n", " ") or word in (run / "compare-held-out" / "comparison.md").read_text()
    held = json.loads((run / "compare-held-out" / "comparison.json").read_text())["runs"]
    recorded = json.loads((run / "result.json").read_text())["loops"]
    for loop, row in zip(held.values(), recorded, strict=True):
        assert loop["mean"]["pixel/auroc"] == pytest.approx(row["pixel/auroc"])
        assert loop["losses"] == {"text loss": row["text/loss"], "image loss": row["image/loss"]}
    assert held["loop 2"]["against_first"]["mean"].keys() >= {"image/auroc", "pixel/auroc", "pixel/aupro"}
    succeeded(aaclip("compare", run, other_parts))
    assert (run / f"compare-{other_parts.name}" / "comparison.md").exists()
    refused(aaclip("compare", looped("feedback.loops=1")), "1 finished loop(s), expected two or more")
    refused(aaclip("compare", looped(*NO_PLATEAU)), "held out no images")


def test_a_set_that_the_loops_learned_from_or_held_out_is_refused(aaclip, looped, parts):
    refused(aaclip("compare", looped(), parts), "learned from")
    refused(aaclip("test", looped() / "loop_1_final.safetensors", parts), "learned from")


def test_the_file_of_a_loop_is_tested_as_a_run_is(aaclip, looped, other_parts, tmp_path):
    run = shutil.copytree(looped(), tmp_path / "run")
    succeeded(aaclip("test", run, other_parts))
    succeeded(aaclip("test", run / "loop_2_final.safetensors", other_parts))
    whole, loop = (place / f"test-{other_parts.name}" / "results.json" for place in (run, run / "loop_2_final"))
    assert json.loads(loop.read_text())["classes"] == json.loads(whole.read_text())["classes"]


def test_a_start_that_knows_held_out_images_is_told(aaclip, small, trained):
    printed = succeeded(aaclip("feedback", *small, *SHORT, f"start={trained()}", "feedback.loops=1"))
    assert "learned from 8 of the 8 held-out images" in printed


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["feedback.loops=0"], "feedback.loops"),
        (["feedback.text_epochs=[]"], "feedback.text_epochs"),
        (["feedback.image_epochs=[0]"], "feedback.image_epochs"),
        (["feedback.lr_decay=0"], "feedback.lr_decay"),
        (["feedback.epochs_decay=1.5"], "feedback.epochs_decay"),
        (["feedback.held_out=1"], "feedback.held_out"),
        (["feedback.held_out=0"], "set feedback.plateau_patience=null"),
        (["feedback.plateau_patience=0"], "feedback.plateau_patience"),
        (["feedback.cross_attention_start_loop=4"], "expected a loop from 1 to 3, got 4"),
        (["feedback.optimizer=adamw"], "feedback.warmup_epochs: expected fewer than the 2 epochs"),
        (["feedback.freeze=adapters"], "with start=RUN"),
        (["feedback.freeze=variant_b", "start=x", "cross_attention.enabled=false"], "set cross_attention.enabled=true"),
        (["trainer.devices=2"], "trainer.devices"),
        (["start=gone"], "gone: no such folder"),
    ],
)
def test_settings_that_cannot_be_are_one_line_and_leave_nothing(aaclip, small, tmp_path, more, match):
    refused(aaclip("feedback", *small, *more), match)
    assert not (tmp_path / "runs").exists()


def test_a_base_run_and_cross_attention_each_way(aaclip, small, looped, trained):
    """A base run starts loops with cross-attention; loops with it do not start ones without."""
    more = (*SHORT, "feedback.loops=1")
    succeeded(aaclip("feedback", *small, *more, f"start={trained()}", "name=on"))
    refused(
        aaclip("feedback", *small, *more, f"start={looped()}", "cross_attention.enabled=false", "name=off"),
        "was trained with cross-attention, which this configuration leaves out",
    )


def test_nothing_to_hold_out_is_one_line(aaclip, small, tmp_path):
    few = [text for text in small if not text.startswith("stages.")]
    refused(aaclip("feedback", *few, "data.mode=few_shot", "data.shot=2"), "no image can be held out", "has two")
    assert not (tmp_path / "runs").exists()


def test_the_other_verb_does_not_continue_it(aaclip, looped, trained):
    refused(aaclip("train", "--resume", looped()), "is a run of `aaclip feedback`, not of `aaclip train`")
    refused(aaclip("feedback", "--resume", trained()), "is a run of `aaclip train`, not of `aaclip feedback`")


def test_a_loop_file_of_another_program_or_damaged_is_one_line(aaclip, looped, parts, tmp_path):
    from clip_common.tensors import write_tensors

    file = tmp_path / "loop_1_final.safetensors"
    write_tensors(file, {"a": torch.zeros(1)})
    refused(aaclip("predict", file, parts, "--name=mug"), "is no loop of a feedback run")
    file.write_bytes(list_loops(looped())[1].read_bytes()[:-100])
    refused(aaclip("predict", file, parts, "--name=mug"), "damaged")


def test_training_settings_of_a_plain_training_are_not_those_of_loops(small):
    """`aaclip train` ignores the section: it has no loops."""
    config = resolve_training(overrides=[*small, "feedback.loops=7"])
    assert not config.cross_attention.enabled
    assert train(config).left == ()


def test_an_unknown_field_is_one_line():
    with pytest.raises(ConfigError, match=r"feedback.loop"):
        load_config(type(resolve()), overrides=["feedback.loop=3"])
