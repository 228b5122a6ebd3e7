"""Training on drawn scenes: what a run leaves, and what each setting does."""

import pytest
import torch
from helpers.real import real_data, real_model
from helpers.runs import rows, same, weights
from toy_runs import configured, losses

from clip_common.config import load_config
from clip_common.losses import contrastive_loss
from clip_common.runs import Run, table
from clipse import Config, Retriever, read_records, score, score_records, train
from clipse.models.retrieval import RetrievalModel
from clipse.released.results import write_training
from clipse.training.losses import SANWDebias
from clipse.training.modules import RetrievalModule, find_first_of_each


def test_a_run_leaves_a_model_its_numbers_and_its_pictures(small, tmp_path):
    config = configured(small, "name=whole", "loss.name=sanw_bandpass")
    trained = train(config)
    run = trained.run.path
    for name in ("config.yaml", "environment.json", "metrics.csv", "result.json", "README.md"):
        assert (run / name).stat().st_size > 0, name
    assert weights(run)
    assert {plot.name for plot in trained.plots} == {"loss.png", "retrieval.png", "temperature.png", "weights.png"}
    logged = rows(run / "metrics.csv")
    steps = [row for row in logged if row["train/loss"]]
    assert len(steps) == 6  # 48 images in batches of 16, two epochs
    for name in ("w_mean", "w_p05", "w_p50", "w_p95", "low_pct", "high_pct", "band_coverage_pct", "ess", "corr_wz"):
        assert all(row[f"sanw/{name}"] for row in steps), name
    epochs = [row for row in logged if row["val/rsum"]]
    assert len(epochs) == 2
    assert all(row["val/loss"] for row in epochs)

    documented = rows(write_training(config, trained.run))
    assert [row["epoch"] for row in documented] == ["1", "2"]
    assert {"method", "seed", "epoch", "model", "pretrained", "R1_I2T", "mAP10_T2I"} <= documented[0].keys()
    assert rows(tmp_path / "runs" / "registry.csv")[0]["name"] == "whole"


def test_the_training_csv_is_whole_or_as_it_was(small, tmp_path, monkeypatch):
    config = configured(small, "name=csv")
    run = train(config).run
    file = write_training(config, run)
    assert file == tmp_path / "results" / "training_csv.csv"
    before = file.read_text()
    assert len(before.splitlines()) == 3
    written = []

    def killed(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(arguments)
        return line(*arguments)

    line = table._line
    monkeypatch.setattr(table, "_line", killed)
    with pytest.raises(KeyboardInterrupt):
        write_training(config, run)
    assert file.read_text() == before


@pytest.mark.parametrize("references", ["frozen", "ema"])
def test_the_validation_loss_compares_pairs_by_the_same_references_as_training(small, monkeypatch, references):
    given = []
    original = RetrievalModule.validation_loss

    def noted(self, image_ND, text_ND, *, text_ids, references):
        given.append((image_ND, text_ND, references, self.model.logit_scale()))
        return original(self, image_ND, text_ND, text_ids=text_ids, references=references)

    monkeypatch.setattr(RetrievalModule, "validation_loss", noted)
    overrides = [
        "name=compared",
        "loss.name=sanw_debias",
        "loss.delta=0.1",
        "loss.lambda=30",
        f"loss.references={references}",
    ]
    run = train(configured(small, *overrides)).run.path
    image_ND, text_ND, compared, scale = given[-1]
    assert [len(side) for side in compared] == [16, 16]
    weighting = SANWDebias(delta=0.1, lam=30.0)
    theirs, online = (
        contrastive_loss(image_ND, text_ND, scale=scale, weighting=weighting, references=by).item()
        for by in (compared, None)
    )
    logged = [float(row["val/loss"]) for row in rows(run / "metrics.csv") if row["val/loss"]]
    assert logged[-1] == pytest.approx(theirs, abs=1e-5)
    assert abs(theirs - online) > 1e-4
    # the references are the starting model's where they are frozen, and apart from the trained one's in any case
    assert not torch.allclose(compared[0], image_ND)
    assert torch.equal(compared[0], given[0][2][0]) == (references == "frozen")


def test_what_no_trainer_moves_goes_to_the_gpu(small, monkeypatch):
    asked: list[tuple[str, str]] = []
    for name in ("models.features", "training.experiment", "scoring.score"):
        patched = lambda devices="auto", name=name: asked.append((name, devices)) or torch.device("cpu")  # noqa: E731
        monkeypatch.setattr(f"clipse.{name}.pick_device", patched)
    overrides = ["name=placed", "model.lock_image=true", "trainer.max_epochs=1", "trainer.devices=cpu"]
    score(str(train(configured(small, *overrides)).run.path))
    assert asked == [("models.features", "cpu"), ("training.experiment", "cpu"), ("scoring.score", "auto")]


@pytest.mark.gpu
def test_every_image_is_encoded_on_the_gpu(small, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    devices = []
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda self, x: devices.append(x.device.type) or forward(self, x))
    for name in ("model.lock_image=true", "model.lock_image=false"):
        score(str(train(configured(small, f"name={name[-4:]}", name)).run.path))
    assert set(devices) == {"cuda"}


def test_search_finds_an_image_by_itself(trained, scenes):
    retriever = Retriever.from_pretrained(trained())
    retriever.index(scenes / "Images")
    wanted = retriever.paths[7]
    best = retriever.search(wanted, k=3)[0]
    assert best.path == wanted
    assert best.similarity == pytest.approx(1.0, abs=1e-5)
    assert len(retriever.search("a red cup", k=5)) == 5


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained):
    again = trained("optim.lr=1e-3")  # the value it has anyway: another run of the same settings
    assert same(weights(trained()), weights(again))
    assert not same(weights(trained()), weights(trained("trainer.seed=1")))


@pytest.mark.parametrize(
    "override",
    [
        "loss.name=siglip",
        "loss.name=sanw_debias",
        "loss.form=decoupled",
        "loss.temperature=0.5",
        "data.captions=all",
        "data.augment=true",
        "model.lock_image=true",
        "model.lock_text=true",
        "optim.lr=2e-3",
    ],
)
def test_each_choice_changes_the_weights_that_come_out(trained, override):
    assert not same(weights(trained()), weights(trained(override)))


@pytest.mark.parametrize("choice", ["references=frozen", "references=ema", "mix=1.0", "alpha=0.5", "gamma=0.5"])
def test_each_choice_of_the_weighting_changes_the_weights_that_come_out(trained, choice):
    assert not same(
        weights(trained("loss.name=sanw_bandpass")), weights(trained("loss.name=sanw_bandpass", f"loss.{choice}"))
    )


def test_strength_zero_trains_exactly_as_clip(trained):
    none = weights(trained("loss.name=sanw_debias", "loss.alpha=0"))
    for name, weight in weights(trained()).items():
        torch.testing.assert_close(none[name], weight, atol=1e-4, rtol=0)


def test_the_image_cache_changes_nothing_but_the_time(trained):
    assert same(weights(trained()), weights(trained("data.cache=true")))


def test_loader_processes_change_nothing_but_the_time(trained):
    assert same(weights(trained()), weights(trained("data.workers=2")))


@pytest.mark.parametrize("choices", [[], ["loss.name=sanw_debias", "loss.references=ema", "data.captions=all"]])
def test_a_batch_encoded_in_parts_trains_as_one_encoded_whole(small, trained, monkeypatch, choices):
    whole = trained(*choices)
    calls = []
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    overrides = ["trainer.max_epochs=1", "data.mini_batch=5", *choices]
    parts = train(configured(small, "name=parts", *overrides)).run.path
    assert max(calls[: 3 * 8]) == 5  # 3 steps of 16 images in 4 parts, forward and again for the backward
    torch.testing.assert_close(losses(parts), losses(whole), atol=1e-4, rtol=0)


def test_batch_normalisation_is_not_encoded_in_parts(small):
    model = (
        "{embed_dim: 32, vision_cfg: {image_size: 32, layers: [1, 1, 1, 1], width: 8}, text_cfg: {width: 32, heads: 2}}"
    )
    with pytest.raises(ValueError, match="batch normalisation"):
        train(configured(small, f"model.architecture={model}", "data.mini_batch=5"))


def test_a_locked_tower_keeps_its_weights_and_its_features_are_computed_once(small, trained, monkeypatch):
    start = trained("optim.lr=0", "optim.weight_decay=0")
    calls = []
    forward = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    config = configured(small, "name=locked", "model.lock_image=true", "trainer.max_epochs=3")
    locked = train(config).run.path
    before, after = weights(start), weights(locked)
    image = [name for name in before if name.startswith("visual.")]
    assert image
    assert all(torch.equal(before[name], after[name]) for name in image)
    assert not same(before, after)
    many = [count for count in calls if count > 1]  # a single row finds out how wide features are
    assert sum(many) == 48 + 16  # each image once, though the best weights are scored once more
    pixels = score_records(RetrievalModel.from_pretrained(locked), read_records(config.data).splits["val"])
    assert Run.open(locked).result["val"]["metrics"] == pytest.approx(pixels.result.metrics, abs=1e-6)


def test_the_module_names_the_samples_of_a_batch_that_has_no_finite_loss(small):
    config = configured(small, "name=nan", "optim.lr=1e30", "trainer.grad_clip=null", "trainer.max_epochs=5")
    with pytest.raises(ValueError, match=r"\.jpg"):
        train(config)


def test_the_first_caption_of_each_image_is_found_in_any_order():
    assert find_first_of_each(torch.tensor([1, 0, 1, 0, 2]), 3).tolist() == [1, 0, 4]


@pytest.mark.real
def test_locked_real_towers_learn_real_captions(tmp_path):
    overrides = [
        f"model.vision={real_model('dinov2')}",
        f"model.text={real_model('minilm')}",
        f"data.root={real_data('captions')}",
        "data.hold_out=100",
        f"runs={tmp_path / 'runs'}",
        f"results={tmp_path / 'results'}",
        "name=real",
    ]
    run = train(load_config(Config, config="dual", overrides=overrides, package="clipse")).run.path
    evaluation = score(str(run)).evaluation
    assert evaluation.images == 201
    assert evaluation.result.metrics["t2i/R@5"] > 0.35  # shuffled captions reach .06, a ridge map .431
