"""Both stages on drawn parts: what a run leaves, what each field does, kill and resume, one image, one class."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers.runs import same, weights

from aaclip.config import Config
from aaclip.detector.detector import Detector
from aaclip.training.experiment import train
from clip_common.config import load_config
from clip_common.runs import Run, read_rows

# the CLIP of these tests is random: it need not find a defect
pytestmark = pytest.mark.filterwarnings("ignore:image score not fitted")


def test_a_run_leaves_a_detector_its_list_and_its_rows(trained, parts):
    run = trained()
    for name in ("config.yaml", "environment.json", "metrics.csv", "training.json", "result.json", "plots/loss.png"):
        assert (run / name).stat().st_size > 0, name
    rows = read_rows(run / "metrics.csv")
    assert [row["phase"] for row in rows] == ["text"] * 4 + ["image"] * 4  # 20 images in batches of 8, two epochs
    detector = Detector.from_pretrained(run)
    assert sorted(detector.classes) == ["mug", "star"]
    found = detector.predict(next((parts / "mug" / "test" / "hole").iterdir()), name="mug")
    assert 0 <= found.score <= 1
    assert found.heatmap_HW.shape == (48, 48)


def test_a_run_has_a_model_card_and_a_row_in_the_registry(trained):
    run = trained()
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "20 images of 2 classes of parts" in card
    assert f'Detector.from_pretrained("{run.as_posix()}")' in card
    rows = [row for row in read_rows(run.parent.parent / "registry.csv") if row["name"] == run.name]
    (row,) = [row for row in rows if row["split"] == "train"]  # others are of tests
    assert (row["package"], row["set"], row["images"]) == ("aaclip", "parts", "20")


def test_the_towers_are_not_written(trained):
    assert not any("tower" in name for name in weights(trained()))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained):
    assert same(weights(trained()), weights(trained("stages.image.lr=0.0005")))  # the value it has anyway
    assert not same(weights(trained()), weights(trained("trainer.seed=1")))


@pytest.mark.parametrize(
    "override",
    [
        "levels=[2, 8]",
        "surgery.axis=batch",
        "surgery.blocks=2",
        "adapters.kind=linear",
        "adapters.kind=mlp",
        "adapters.text_blocks=2",
        "adapters.image_blocks=3",
        "adapters.text_weight=0.3",
        "adapters.image_weight=0.3",
        "adapters.kind=lora",
        "adapters.kind=conv",
        "adapters.placement=last",
        "adapters.placement=spread",
        "adapters.position=parallel",
        "adapters.norm=none",
        "adapters.norm=layer",
        "adapters.norm=learned",
        "adapters.final_init=xavier",
        "heads.activation=none",
        "heads.detection=mean",
        "heads.detection=attention",
        "heads.detection=levels",
        "preprocess.statistics=imagenet",
        "prompts.set=full",
        "prompts.renormalise=false",
        "prompts.learned_tokens=4",
        "augment.rotation=30",
        "augment.rotation_p=0",
        "augment.crop=1.5",
        "augment.translation=0.3",
        "augment.flip_horizontal=0",
        "augment.flip_vertical=1",
        "augment.jitter=0.9",
        "augment.jitter_p=0",
        "loss.focal_alpha=dynamic",
        "loss.orthogonal=3",
        "loss.infonce=0.1",
        "loss.orthogonal=0;loss.infonce=0.1",
        "loss.infonce=0.1;loss.infonce_temperature=1",
        "stages.order=joint",
        "stages.text.epochs=1",
        "stages.text.batch_size=4",
        "stages.text.lr=1e-2",
        "stages.text.levels_in_loss=last",
        "stages.text.classification=true",
        "stages.text.cache_features=1",
        "stages.image.epochs=1",
        "stages.image.batch_size=4",
        "stages.image.lr=1e-2",
        "stages.image.milestones=[1]",
        "stages.image.learned_temperature=true",
        "stages.image.learned_levels=true",
        "data.classes=[mug]",
        "data.labelled=test",
        "data.mode=few_shot;data.shot=2",
    ],
)
def test_each_field_changes_the_weights_that_come_out(trained, override):
    assert not same(weights(trained()), weights(trained(*override.split(";"))))


def test_the_rank_is_that_of_the_low_rank_updates(trained):
    for rank in (8, 2):
        found = weights(trained("adapters.kind=lora", f"adapters.rank={rank}"))
        assert found["image_adapter.layers.0.query.0.weight"].shape == (rank, 32)


def test_the_temperature_of_infonce_counts_where_infonce_does(trained):
    on, other = "loss.infonce=0.1", "loss.infonce_temperature=1"
    assert same(weights(trained()), weights(trained(other)))
    assert not same(weights(trained(on)), weights(trained(on, other)))
    assert all(float(row["train/infonce"]) > 0 for row in read_rows(trained(on) / "metrics.csv")[:4])


def test_the_image_as_a_whole_is_trained_where_it_is_not_clip_s_own(trained):
    """With the frozen class token there is no head, no loss of it, and so no factor of its cosines."""
    own, scaled = "heads.detection=mean", "loss.classification_scale=1"
    assert not same(weights(trained(own)), weights(trained(own, scaled)))
    assert same(weights(trained()), weights(trained(scaled)))
    heads = [name for name in weights(trained(own)) if name.startswith("image_adapter.detection")]
    assert len(heads) == 2
    assert not any(name.startswith("image_adapter.detection") for name in weights(trained()))
    for run, logged in ((trained(own), True), (trained(), False)):
        rows = [row for row in read_rows(run / "metrics.csv") if row["phase"] == "image"]
        assert all(bool(row.get("train/classification")) is logged for row in rows)


def test_loader_processes_change_nothing_but_the_time(trained):
    assert same(weights(trained()), weights(trained("data.workers=2")))


def test_cached_views_train_as_views_computed_again(trained):
    """With as many views as epochs, what is cached is what would have been computed, but for half precision."""
    cached, computed = (read_rows(trained(*more) / "metrics.csv") for more in (["stages.text.cache_features=2"], []))
    for one, other in zip(cached[:4], computed[:4], strict=True):
        assert float(one["train/loss"]) == pytest.approx(float(other["train/loss"]), rel=2e-3)


def test_stage_one_alone_and_stage_two_alone(trained):
    both, text, image = (weights(trained(*more)) for more in ([], ["stages.image.epochs=0"], ["stages.text.epochs=0"]))
    start = weights(trained("stages.image.epochs=0", "stages.text.lr=0"))
    for name, value in start.items():
        if name.startswith("text_adapter"):
            assert torch.equal(text[name], both[name])
            assert not torch.equal(text[name], value)
        if name.startswith("image_adapter"):
            assert torch.equal(text[name], value)
    plain = [name for name in image if name.startswith("text_adapter")]
    assert plain == ["text_adapter.final.0.weight"]  # plain CLIP, see test_released_testing.py


SCRIPT = """
import sys
from pathlib import Path
from aaclip.training.experiment import resolve, train
resume = Path(sys.argv[2]) if sys.argv[1] == "resume" else None
train(resolve(resume=resume) if resume else resolve(overrides=sys.argv[2:]), resume=resume)
"""


@pytest.mark.parametrize(("phase", "step"), [("text", 3), pytest.param("image", 2, marks=pytest.mark.slow)])
def test_killed_in_either_stage_and_resumed_equals_uninterrupted(small, trained, tmp_path, phase, step):
    settings = [*small, "name=killed", "trainer.checkpoint_every=1"]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, "new", *settings], stderr=subprocess.PIPE, text=True)
    run = tmp_path / "runs" / "aaclip" / "killed"
    while process.poll() is None:
        rows = read_rows(run / "metrics.csv") if (run / "metrics.csv").exists() else []
        if any(row["phase"] == phase and int(row["step"]) >= step for row in rows):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    train(load_config(Config, config=run / "config.yaml"), resume=run)
    assert same(weights(run), weights(trained()))
    assert [row["step"] for row in read_rows(run / "metrics.csv")] == list("12341234")


def test_a_finished_run_that_is_resumed_stays_as_it_is(small):
    run = train(load_config(Config, overrides=[*small, "name=twice"])).run
    before = weights(run.path)
    again = train(load_config(Config, config=run.path / "config.yaml"), resume=run.path)
    assert all(torch.equal(before[name], value) for name, value in weights(again.run.path).items())
    assert len(Run.open(run.path).metrics.rows()) == 8


def test_one_image_of_one_class(small, tmp_path):
    from clip_common.synthetic import write_mvtec

    root = write_mvtec(tmp_path / "one", kinds=("key",), defects=("hole",), train=1, good=0, damaged=1, size=32)
    settings = [*small, f"data.root={root}", "data.labelled=test", "name=one"]
    trained = train(load_config(Config, overrides=settings))
    assert trained.images == 1
    assert trained.detector.score.images == 0  # nothing to fit on: one kind of image


def test_a_set_that_will_be_tested_must_not_be_trained_on(small, parts, tmp_path):
    with pytest.raises(ValueError, match="training image\\(s\\) are in a test set too"):
        train(load_config(Config, overrides=[*small, f"data.test_roots=[{parts}]", "name=overlap"]))
    assert not (tmp_path / "runs").exists()
