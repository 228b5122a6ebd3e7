"""From a configuration to a run folder: what is learned, written and refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.runs import rows, weights
from toy_alignments import configured, losses

import edgeglass
from clip_common.errors import DataError
from edgeglass.aligner.aligner import Aligner
from edgeglass.scoring.score import score
from edgeglass.training.experiment import train
from edgeglass.training.modules import share_parts


def test_a_run_learns_and_leaves_a_complete_folder(small, tmp_path):
    trained = train(configured(small, "name=first", "trainer.max_epochs=12", "optim.lr=1e-2", "fusion.kind=gated"))
    run = trained.run.path
    first, last = losses(run)[0], losses(run)[-1]
    assert last < 0.85 * first
    assert {"config.yaml", "environment.json", "metrics.csv", "result.json", "README.md", "model"} <= {
        path.name for path in run.iterdir()
    }
    assert all(plot.stat().st_size > 1000 for plot in trained.plots)
    logged = {name for row in rows(run / "metrics.csv") for name, value in row.items() if value}
    assert {"train/loss/image-text", "train/loss/image+audio-text", "train/temperature/audio-text"} <= logged
    assert {"val/i2t/R@1", "val/a2i/R@10", "val/ia2t/R@1", "val/loss", "val/R@1"} <= logged
    (row,) = rows(tmp_path / "runs" / "registry.csv")
    assert row["package"] == "edgeglass"
    assert float(row["R@1"]) == pytest.approx(trained.validation.metrics["R@1"])


def test_scores_of_a_run_are_those_of_its_saved_model(small):
    trained = train(configured(small, "name=first", "trainer.max_epochs=3"))
    scored = score(trained.run.path, overrides=["split=val"])
    assert scored.evaluation.metrics == trained.validation.metrics
    assert {file.name for file in scored.written} == {"result.json", "widths-val.png", "mixed-val.png"}
    assert trained.run.result["val"]["mixed_gallery"]["truth"] == pytest.approx(
        {"image": 1 / 3, "text": 1 / 3, "audio": 1 / 3}
    )
    widths = {way.width for way in scored.evaluation.directions}
    assert widths == {32, 16, 8}
    assert scored.evaluation.directions[0].ceiling == pytest.approx(1.0)


def test_a_model_of_two_modalities_ignores_the_third(small):
    trained = train(configured(small, "name=two", "encoders.audio.name=null"))
    assert trained.validation.items.keys() == {"image", "text"}
    assert not any("audio" in name for name in weights(trained.run.path))


def test_overfitting_a_batch_drives_its_loss_down(small):
    extra = ["trainer.overfit_batches=1", "trainer.max_epochs=60", "optim.lr=1e-2", "mrl.dims=[]"]
    run = train(configured(small, "name=over", *extra)).run.path
    assert losses(run)[-1] < 0.3 * losses(run)[0]


@pytest.mark.parametrize("negatives", ["batch", "corpus"])
def test_a_loss_at_ln_b_raises_the_collapse_warning(small, monkeypatch, negatives):
    """All embeddings alike: a last layer of zeros that hardly moves."""
    from edgeglass.training import experiment

    build = experiment.build_model

    def collapsed(config, *, loss):
        model = build(config, loss=loss)
        for encoder in model.encoders.values():
            torch.nn.init.zeros_(encoder.head.projector[-1].weight)
            torch.nn.init.ones_(encoder.head.projector[-1].bias)
        return model

    monkeypatch.setattr(experiment, "build_model", collapsed)
    monkeypatch.setattr("clip_common.training.guards.CHANCE_STEPS", 5)
    with pytest.warns(UserWarning, match="all candidates have the same score"):
        train(
            configured(small, "name=collapsed", f"loss.negatives={negatives}", "optim.lr=1e-9", "trainer.max_epochs=3")
        )


@pytest.mark.parametrize("negatives", ["batch", "corpus"])
def test_the_contrastive_loss_starts_near_chance(small, negatives):
    extra = [f"loss.negatives={negatives}", "loss.temperature=1.0", "trainer.max_epochs=1", "optim.lr=1e-9"]
    run = train(configured(small, f"name={negatives}", *extra)).run.path
    (row, *_) = rows(run / "metrics.csv")
    # at temperature 1 all candidates score nearly alike: 16 of a batch, or 240 captions and 48 images or sounds
    with_texts = (math.log(240) + math.log(48)) / 2
    expected = math.log(16) if negatives == "batch" else (2 * with_texts + math.log(48)) / 3
    assert float(row["train/loss_contrastive"]) == pytest.approx(expected, abs=0.25)


def test_embeddings_of_the_frozen_text_encoder_do_not_change(small, parts):
    from sentence_transformers import SentenceTransformer

    texts = ["a red ball", "two blue cats", ""]
    before = SentenceTransformer(str(parts / "text"), device="cpu").encode(texts, convert_to_tensor=True)
    trained = train(configured(small, "name=frozen"))
    aligner = Aligner.from_pretrained(trained.run.path)
    trunk = aligner.model.encoder_of("text").trunk
    after = trunk.model.encode(texts, convert_to_tensor=True)
    assert torch.equal(before, after)
    assert not any("trunk" in name for name in weights(trained.run.path))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.batch_size=64"], "data.batch_size=64 is more than the 48 training samples"),
        (
            ["loss.image_text=0", "loss.audio_text=0", "loss.image_audio=0"],
            "no pair of image, text, audio has a weight",
        ),
        (["loss.negatives=corpus", "encoders.text.freeze=false"], "the encoder of text trains"),
        (["encoders.vision.select_layer=99"], "select_layer=99"),
        (["data.root=nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(small, tmp_path, overrides, words):
    with pytest.raises(ValueError, match=words) as error:
        train(configured(small, *overrides))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs" / "edgeglass").exists()


def test_a_modality_or_pair_without_samples_is_named(small, parts, tmp_path):
    lines = [json.loads(line) for line in (parts / "world" / "data.jsonl").read_text().splitlines()]
    silent = tmp_path / "silent.jsonl"
    apart = tmp_path / "apart.jsonl"
    rows_silent, rows_apart = [], []
    for number, row in enumerate(lines):
        image, audio = (str(parts / "world" / row[name]) for name in ("image", "audio"))
        shared = {"split": row["split"], "captions": row["captions"]}
        rows_silent.append(shared | {"image": image})
        rows_apart.append(shared | ({"image": image} if number % 2 else {"audio": audio}))
    silent.write_text("\n".join(map(json.dumps, rows_silent)))
    apart.write_text("\n".join(map(json.dumps, rows_apart)))
    with pytest.raises(DataError, match=r"no training sample has audio.*encoders\.audio\.name=null"):
        train(configured(small, f"data.root={silent}"))
    with pytest.raises(DataError, match=r"with image and audio.*loss\.image_audio=0"):
        train(configured(small, f"data.root={apart}"))
    trained = train(configured(small, f"data.root={apart}", "loss.image_audio=0", "name=apart"))
    assert {way.name for way in trained.validation.full} == {"i2t", "t2i", "a2t", "t2a"}


def test_every_rank_validates_as_many_parts():
    parts = [{"image": range(3)}, {"image": range(3, 5)}, {"text": range(4)}]
    assert share_parts(parts, rank=0, world=2) == [parts[0], parts[2]]
    assert share_parts(parts, rank=1, world=2) == [parts[1], parts[2]]


@pytest.mark.parametrize(
    "overrides",
    [
        ["encoders.text.freeze=false"],
        ["encoders.audio.lora.rank=2"],
        ["encoders.vision.lora.rank=2", "encoders.vision.lora.targets=[c_fc]", "encoders.audio.name=null"],
    ],
)
def test_an_encoder_that_trains_is_saved_and_reloaded(small, overrides):
    trained = train(configured(small, "name=trains", "trainer.max_epochs=1", *overrides))
    assert any("trunk" in name for name in weights(trained.run.path))
    assert score(trained.run.path, overrides=["split=val"]).evaluation.metrics == trained.validation.metrics


def test_every_named_configuration_resolves():
    from clip_common.config import load_config
    from edgeglass.config import Config, VlmConfig

    files = sorted((Path(edgeglass.__file__).parent / "configs").glob("*.yaml"))
    of_stage_2 = {file.stem for file in files if "decoder:" in file.read_text(encoding="utf-8")}
    names = {file.stem for file in files} - of_stage_2
    assert {"mlp_bimodal", "attention_trimodal", "perceiver_trimodal", "tiny"} <= names
    for name in names:
        assert load_config(Config, config=name, package="edgeglass").pairs
    assert of_stage_2 == {"tiny_vlm", "qwen_3b", "qwen_7b", "qwen_3b_trm", "trm_decoder"}
    for name in of_stage_2:
        assert load_config(VlmConfig, config=name, package="edgeglass").label
