"""Vision-language training: phases, resuming, ranks, text without images, and what is refused before it starts."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import rows
from toy_processes import check_killed_equals, make_script, train_on_two_ranks
from toy_questions import configured

from clip_common.tensors import read_tensors
from edgeglass.training.vlm_experiment import train_vlm
from edgeglass.vlm.vlm import VLM

SCRIPT = make_script(schema="VlmConfig", train="edgeglass.training.vlm_experiment.train_vlm")
KINDS = {
    "qwen": [],
    "qwen+trm": ["trm.steps=2", "trm.supervise=monotone"],
    "trm": ["decoder.kind=trm", "trm.steps=2", "trm.supervise=all"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_leaves_a_model_that_answers(asked, question_parts, kind):
    # a decoder from scratch needs more steps to learn which letters there are
    longer = ["trainer.max_epochs=10", "optim.lr=1e-2"] if kind == "trm" else ["trainer.max_epochs=3"]
    trained = train_vlm(configured(asked, f"name={kind}", *KINDS[kind], *longer))
    losses = [float(row["val/loss"]) for row in rows(trained.run.path / "metrics.csv") if row["val/loss"]]
    learned = [float(row["train/loss"]) for row in rows(trained.run.path / "metrics.csv") if row["train/loss"]]
    assert sum(learned[-3:]) < sum(learned[:3])
    assert trained.validation is not None
    assert trained.validation["loss"] == pytest.approx(min(losses))
    assert trained.run.result.keys() == {"epochs", "steps", "skipped", "cut", "val"}
    vlm = VLM.from_pretrained(trained.run.path)
    image = next((question_parts / "questions" / "images").iterdir())
    assert isinstance(vlm.ask(image, "what colour is the mug?"), str)
    assert (trained.run.path / "README.md").is_file()
    loops = {"qwen": [], "qwen+trm": [0, 1, 2], "trm": [1, 2]}[kind]
    logged = {name for row in rows(trained.run.path / "metrics.csv") for name, value in row.items() if value}
    assert {name for name in logged if "loop" in name} == {f"train/loss/loop_{loop}" for loop in loops}
    assert {plot.name for plot in trained.plots} == {"loss.png", "accuracy.png", *(["loops.png"] if loops else [])}


def test_what_trains_in_each_phase(asked):
    """The decoder and the image encoder never change; a projector phase leaves no adapters behind."""
    projector = train_vlm(configured(asked, "name=projector", "phase=projector")).run.path
    of_projector = read_tensors(projector / "model" / "model.safetensors")
    assert {name.partition(".")[0] for name in of_projector} == {"vision_proj"}
    both = configured(asked, "name=lora", "phase=lora", f"start={projector}", "optim.lr=0")
    of_lora = read_tensors(train_vlm(both).run.path / "model" / "model.safetensors")
    for name, tensor in of_projector.items():
        assert torch.equal(of_lora[name], tensor)
    assert any("lora_A" in name for name in of_lora)
    assert all("lora_" in name for name in of_lora.keys() - of_projector.keys())


def test_a_rate_of_its_own_holds_the_projector_still(asked):
    run = train_vlm(configured(asked, "name=still", "prefix.lr=0", "optim.lr=1e-2", "trainer.max_epochs=1")).run.path
    untrained = train_vlm(configured(asked, "name=none", "optim.lr=0", "trainer.max_epochs=1")).run.path
    was, now = (read_tensors(path / "model" / "model.safetensors") for path in (untrained, run))
    changed = {name for name, tensor in now.items() if not torch.equal(tensor, was[name])}
    assert changed
    assert not any(name.startswith("vision_proj.") for name in changed)


def test_packed_and_padded_runs_have_the_same_losses(asked):
    losses = []
    for number, extra in enumerate((["data.row_length=400"], ["data.row_length=100000"], ["data.packing=false"])):
        run = train_vlm(configured(asked, f"name={number}", "trainer.max_epochs=1", *extra)).run.path
        losses.append([float(row["val/loss"]) for row in rows(run / "metrics.csv") if row["val/loss"]])
    # a padded run draws batches of similar lengths, so only packed ones train on the same batches
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[2] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.parametrize("kind", ["qwen+trm", "trm"])
def test_killed_at_any_step_and_resumed_equals_uninterrupted(asked, tmp_path, kind):
    extra = [*KINDS[kind], "trainer.max_epochs=6", "trainer.checkpoint_every=1", "data.per_image=1"]
    whole = train_vlm(configured(asked, "name=whole", *extra)).run.path
    check_killed_equals(whole, SCRIPT, [*asked, *extra], monitor="val/loss")


def test_two_ranks_train_as_one_though_one_may_see_no_image(asked, tmp_path, mixed):
    """Answers have different numbers of tokens, and some batches of a rank are text alone."""
    # behind a gate of zero gradients are all but zero: AdamW with a small eps makes steps of their rounding
    eps = "optim.eps=1e-3"
    extra = [f"data.root={mixed}", "optim.lr=1e-3", eps, "trm.steps=1", "trm.supervise=monotone", "data.batch_size=4"]
    one = train_vlm(configured(asked, "name=one", *extra)).run.path
    two = train_on_two_ranks(SCRIPT, [*asked, "name=two", *extra], tmp_path)
    last, found = (torch.load(run / "checkpoints" / "fit" / "last.ckpt", weights_only=True) for run in (one, two))
    assert last["state_dict"].keys() == found["state_dict"].keys()
    for name, weight in last["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], weight, atol=5e-4, rtol=0, msg=name)
    losses = [[float(row["val/loss"]) for row in rows(run / "metrics.csv") if row["val/loss"]] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)


@pytest.fixture
def mixed(question_parts, tmp_path) -> Path:
    """Questions about images, and three in four about none."""
    source = question_parts / "questions"
    lines = [json.loads(line) for line in (source / "questions.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["split"] == "train"][:32] + [
        line for line in lines if line["split"] == "val"
    ]
    for number, row in enumerate(kept):
        row["image"] = str(source / row["image"])
        if number % 4:
            del row["image"]
            row["question"] += f" {number}"
            row["answer"] = "a long answer of many words " * (number % 3 + 1)
            del row["answers"]
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join(map(json.dumps, kept)) + "\n")
    return file


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prefix.name=null"], "no image encoder: give align=RUN of `edgeglass align`, or prefix.name"),
        (["align=runs/x"], "align and prefix.name both name an image encoder"),
        (["phase=lora"], "phase=lora continues a projector phase: give start=RUN"),
        (["decoder.lora.r=0"], "set decoder.lora.r above 0, or phase=projector"),
        (["decoder.lora.targets=[nothing]"], "the decoder has no such linear layers, it has .*q_proj"),
        (["decoder.kind=trm"], "set trm.steps, the number of loops, above 0"),
        (["decoder.kind=trm", "trm.steps=1", "decoder.quantization=4bit"], "trains all of its weights"),
        (["prefix.merge=3"], "form no square grid whose side it divides"),
        (["data.batch_size=500"], "do not fill a batch of 500"),
        (["data.max_length=5"], "leaves 1 for the text: raise data.max_length"),
        (["decoder.name=nothing/here/at all"], "no such folder"),
        (["trm.heads=3"], "must be an even whole number"),
        (["trm.halt=threshold"], "set trm.supervise=all or monotone"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(asked, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        train_vlm(configured(asked, "name=refused", *overrides))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs" / "edgeglass").exists()
