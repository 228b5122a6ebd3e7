"""Both stages at once: what they learn, what they share with the two stages, kill and resume, what is refused."""

import json
import sys

import pytest
import torch
from helpers.runs import kill_when, same, weights

from aaclip.config import Config
from aaclip.data import collate
from aaclip.detector.detector import Detector
from aaclip.models.backbone import load_backbone, make_model
from aaclip.models.prompts import load_prompts
from aaclip.training.experiment import read_training_records, resolve, train
from aaclip.training.feedback import feedback
from aaclip.training.fits import make_dataset
from aaclip.training.joint import JointStage
from aaclip.training.modules import ImageStage, TextStage
from clip_common.config import ConfigError, load_config
from clip_common.runs import Run, read_rows

pytestmark = pytest.mark.filterwarnings("ignore:image score not fitted")

JOINT = "stages.order=joint"


def prepared(small, *more):
    """A model, its configuration, its prompts and a batch of four images of two classes."""
    config = load_config(Config, overrides=[*small, *more])
    torch.manual_seed(0)
    model = make_model(load_backbone(config.backbone), config)
    dataset = make_dataset(model, read_training_records(config), config, colour=True)
    batch = collate([dataset[index] for index in (0, 4, 11, 15)])
    return model, config, load_prompts(config.prompts), batch


def test_the_loss_is_that_of_both_stages_with_the_same_classes(small):
    model, config, prompts, batch = prepared(small, JOINT, "heads.detection=mean", "loss.infonce=0.1")
    joint = JointStage(model, config.stages, config.loss, prompts=prompts)
    found = joint.compute_losses(batch)
    text = TextStage(model, config.stages.text, config.loss, prompts=prompts)
    classes = dict(zip(batch.class_names, joint.embed_texts(batch.class_names, prompts).text_BD2.detach(), strict=True))
    image = ImageStage(model, config.stages.image, config.loss, classes=classes, contexts={})
    losses = [stage.compute_losses(batch) for stage in (text, image)]
    torch.testing.assert_close(found["loss"], losses[0]["loss"] + losses[1]["loss"])
    torch.testing.assert_close([found["text"], found["image"]], [one["loss"] for one in losses])
    assert found.keys() == {"loss", "text", "image", "orthogonal", "infonce", "classification"}


def test_gradients_reach_every_trained_part_and_no_other(small):
    more = ["heads.detection=attention", "prompts.learned_tokens=2", "stages.image.learned_levels=true"]
    model, config, prompts, batch = prepared(small, JOINT, *more)
    joint = JointStage(model, config.stages, config.loss, prompts=prompts)
    joint.compute_losses(batch)["loss"].backward()
    reached = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert reached == trained
    assert trained == {
        name for name, _ in model.named_parameters() if name.startswith(("text_adapter.", "image_adapter.", "level_"))
    }
    groups = joint.configure_optimizers()["optimizer"].param_groups
    assert [group["lr"] for group in groups] == [config.stages.text.lr, config.stages.image.lr]
    assert sum(len(group["params"]) for group in groups) == len(trained)
    of_images = {id(one) for one in (*model.image_adapter.parameters(), model.level_logits)}
    assert {id(one) for one in groups[1]["params"]} == of_images


def test_the_second_loss_trains_texts_too(small):
    model, config, prompts, batch = prepared(small, JOINT)
    joint = JointStage(model, config.stages, config.loss, prompts=prompts)
    losses = joint.compute_losses(batch)
    weight = model.text_adapter.final[0].weight
    gradients = [torch.autograd.grad(losses[name], weight, retain_graph=True)[0] for name in ("text", "image")]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_both_modules_learn_and_the_loss_falls(small, trained):
    more = ["trainer.seed=0", "stages.image.epochs=12", "augment.rotation=0", "augment.crop=1", "augment.jitter_p=0"]
    done = train(load_config(Config, overrides=[*small, JOINT, *more, "name=falls"]))
    rows = read_rows(done.run.path / "metrics.csv")
    assert {row["phase"] for row in rows} == {"joint"}
    for name in ("train/text", "train/image"):
        values = [float(row[name]) for row in rows]
        assert sum(values[-4:]) < sum(values[:4]), name
    start = weights(trained(JOINT, "stages.text.lr=0", "stages.image.lr=0"))
    for part in (
        "text_adapter.layers.0",
        "text_adapter.final",
        "image_adapter.layers.0",
        "image_adapter.segmentation.0",
    ):
        changed = [
            not torch.equal(value, start[name]) for name, value in weights(done.run.path).items() if part in name
        ]
        assert any(changed), part


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("stages.text.lr=1e-2", ""),
        ("stages.image.lr=1e-2", ""),
        ("stages.image.epochs=1", ""),
        ("stages.image.batch_size=4", ""),
        ("stages.image.milestones=[1]", "text_adapter"),
        ("stages.image.milestones=[1]", "image_adapter"),
        ("stages.text.levels_in_loss=last", ""),
        ("stages.text.classification=true", ""),
        ("loss.infonce=0.1", ""),
        ("stages.image.learned_temperature=true", "log_temperature"),
    ],
)
def test_settings_of_both_stages_count(trained, override, part):
    one, other = (weights(trained(JOINT, *more)) for more in ([], [override]))
    assert not same(*({name: value for name, value in all.items() if part in name} for all in (one, other)))


def test_the_detector_has_the_classes_of_the_trained_model(trained):
    run = trained(JOINT)
    detector = Detector.from_pretrained(run)
    stored = detector.classes.pop("mug")
    torch.testing.assert_close(detector.class_embedding("mug"), stored)
    assert (run / "plots" / "loss.png").stat().st_size > 0
    assert Run.open(run).ledger.done("joint")


LONGER = "stages.image.epochs=10"


def test_killed_and_resumed_equals_uninterrupted(small, trained, tmp_path):
    run = tmp_path / "runs" / "aaclip" / "killed"
    line = ["train", *small, JOINT, LONGER, "name=killed", "trainer.checkpoint_every=1"]
    kill_when(
        lambda: any(int(row["step"]) >= 3 for row in read_rows(run / "metrics.csv")),
        [sys.executable, "-m", "aaclip", *line],
    )
    assert not (run / "model").exists()
    train(resolve(resume=run), resume=run)
    assert same(weights(run), weights(trained(JOINT, LONGER)))
    assert [int(row["step"]) for row in read_rows(run / "metrics.csv")] == list(range(1, 21))


def test_a_finished_run_stays_and_its_settings_are_fixed(trained):
    run = trained(JOINT)
    before = json.loads((run / "result.json").read_text())
    config = resolve(resume=run)
    assert train(config, resume=run).detector is not None
    assert json.loads((run / "result.json").read_text()) == before
    config.stages.image.lr = 1.0
    with pytest.raises(ValueError, match=r"was started with stages.image.lr=0.0005, not 1.0"):
        train(config, resume=run)


@pytest.mark.parametrize(
    ("overrides", "stage", "said"),
    [
        ([], "text", "--stage text: stages.order=joint trains both stages at once: leave --stage out"),
        ([], "image", "--stage image: stages.order=joint trains both stages at once"),
        (["stages.text.epochs=0"], "both", "stages.text.epochs=0 with stages.order=joint, which trains both stages"),
        (["stages.image.epochs=0"], "both", "stages.image.epochs=0 with stages.order=joint"),
        (["cross_attention.enabled=true"], "both", "cross_attention.enabled=true with stages.order=joint"),
    ],
)
def test_what_joint_training_cannot_do_is_one_line_and_leaves_nothing(small, tmp_path, overrides, stage, said):
    with pytest.raises(ValueError) as error:
        train(load_config(Config, overrides=[*small, JOINT, *overrides]), stage=stage)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_cached_views_and_loops_are_refused_and_so_is_another_order(small, tmp_path):
    with pytest.raises(
        ConfigError, match=r"stages.text.cache_features=2 with stages.order=joint: .* set cache_features=0"
    ):
        load_config(Config, overrides=[JOINT, "stages.text.cache_features=2"])
    with pytest.raises(ValueError, match=r"stages.order=joint: loops train one stage after the other"):
        feedback(load_config(Config, overrides=[*small, JOINT]))
    with pytest.raises(ConfigError, match=r"stages.order"):
        load_config(Config, overrides=["stages.order=alternating"])
    assert not (tmp_path / "runs").exists()
