"""`clipse compare`: what it leaves, what it keeps when called again, what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from clip_common.config import load_config
from clip_common.metrics import paired_bootstrap
from clip_common.runs import Run
from clipse import Config
from clipse.config import LossConfig
from clipse.data import read_records
from clipse.models.retrieval import RetrievalModel
from clipse.scoring.score import score_records
from clipse.series.compare import compare, parse_loss, score_member
from clipse.series.members import open_series_folder
from clipse.training.modules import RetrievalModule

LOSSES, SEEDS = ["clip", "sanw_debias", "sanw_bandpass:conservative"], [13, 17]


@pytest.fixture
def steps(monkeypatch):
    """Counts training steps; `steps.stop_at` raises before a step, as a kill would come."""

    class Steps:
        count, stop_at = 0, -1

    original = RetrievalModule.training_step

    def counted(self, batch, batch_idx):
        if Steps.count == Steps.stop_at:
            raise RuntimeError("stopped here")
        Steps.count += 1
        return original(self, batch, batch_idx)

    monkeypatch.setattr(RetrievalModule, "training_step", counted)
    return Steps


@pytest.fixture
def quick(small):
    return [*small, "trainer.max_epochs=1", "name=some"]


def configured(overrides):
    return load_config(Config, overrides=overrides, package="clipse")


@pytest.mark.parametrize("stop_at", [1, 7])
def test_a_stopped_comparison_goes_on_where_it_was_and_ends_as_an_uninterrupted_one(quick, tmp_path, steps, stop_at):
    losses = LOSSES[:2]
    whole = compare(configured([*quick, f"runs={tmp_path / 'whole'}"]), losses=losses, seeds=SEEDS)
    assert steps.count == 12  # 2 losses, 2 seeds, 48 images in batches of 16

    steps.count, steps.stop_at = 0, stop_at
    with pytest.raises(RuntimeError, match="stopped here"):
        compare(configured(quick), losses=losses, seeds=SEEDS)
    steps.stop_at = -1
    again = compare(configured(quick), losses=losses, seeds=SEEDS)
    # a run that was stopped inside its only epoch begins that again
    assert steps.count == 12 + stop_at % 3
    assert again.rows == whole.rows

    before = steps.count
    assert compare(configured(quick), losses=losses, seeds=SEEDS).rows == whole.rows
    assert steps.count == before


def test_the_table_the_picture_and_the_numbers(quick, tmp_path, steps, scenes):
    # images of the test split are broken: a comparison on val must not need them
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    records = read_records(configured([*quick, f"data.root={data}"]).data).splits
    for record in records["test"]:
        record.path.write_bytes(b"broken")
    overrides = [*quick, f"data.root={data}"]
    found = compare(configured(overrides), losses=LOSSES, seeds=SEEDS)
    assert (found.split, found.seeds, found.images) == ("val", (13, 17), 16)
    assert [row.label for row in found.rows] == LOSSES
    assert found.rows[0].against is None
    assert found.plot.stat().st_size > 10_000
    lines = found.table.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("Scored on the val split; weights were selected on this split: 16 images, ")
    assert "2 seeds (13, 17)" in lines[0]
    assert lines[2].startswith("| loss | rsum, mean ± sd | minus clip (95 % interval) | p | i2t/R@1")
    assert f"| clip | {found.rows[0].mean:.1f} ± {found.rows[0].sd:.1f} |" in lines[4]

    # the numbers are those of the runs, and the interval that of the two-way bootstrap over them
    runs = found.folder / "clipse"
    assert sorted(path.name for path in runs.iterdir()) == sorted(
        f"{loss.replace(':', '-')}-s{seed}" for loss in LOSSES for seed in SEEDS
    )
    for row in found.rows:
        for seed, rsum in zip(SEEDS, row.rsums, strict=True):
            kept = json.loads((runs / f"{row.label.replace(':', '-')}-s{seed}" / "result.json").read_text())
            assert rsum == pytest.approx(kept["val"]["metrics"]["rsum"])
    assert found.rows[1].against is not None
    assert found.rows[1].against.difference == pytest.approx(found.rows[1].mean - found.rows[0].mean)
    results = {
        loss: [
            score_member(
                Run.open(runs / f"{loss}-s{seed}"), configured(overrides), "val", records["val"], reporter=None
            )
            for seed in SEEDS
        ]
        for loss in LOSSES[:2]
    }
    assert found.rows[1].against == paired_bootstrap(results["sanw_debias"], results["clip"])
    assert (
        json.loads((found.folder / "result.json").read_text())["val"]["losses"]["clip"]["rsums"] == found.rows[0].rsums
    )
    assert steps.count == 18


def test_more_losses_and_seeds_and_another_split_train_only_what_is_missing(quick, steps):
    config = configured(quick)
    compare(config, losses=["clip"], seeds=[1])
    assert steps.count == 3
    found = compare(config, losses=["clip", "sanw_bandpass"], seeds=[1, 2], split="test")
    assert steps.count == 12
    assert found.table.name == "comparison-test.md"
    assert "selected on this split" not in found.table.read_text(encoding="utf-8")
    assert compare(config, losses=["clip"], seeds=[1]).rows[0].sd is None


def test_results_on_other_images_or_captions_are_not_put_beside_each_other(clipse, quick, tmp_path, scenes):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    captions, val, test = (next(data.glob(f"*{name}*.txt")) for name in ("captions", "devImages", "testImages"))
    overrides = [*quick, f"data.root={data}", "seeds=[1]"]
    assert clipse("compare", "losses=[clip]", *overrides)[0] == 0

    def swap():
        kept = val.read_bytes()
        val.write_bytes(test.read_bytes())
        test.write_bytes(kept)

    def refused(splits):
        code, _, error = clipse("compare", "losses=[clip,sanw_debias]", *overrides)
        assert code == 2
        assert f"some: the images or captions of {splits} have changed since it was started: restore them, or" in error
        assert len(error.splitlines()) == 1

    swap()
    refused("val")
    swap()
    before = captions.read_text(encoding="utf-8")
    captions.write_text(before.replace("red", "blue"), encoding="utf-8")
    refused("train, val")
    captions.write_text(before, encoding="utf-8")
    code, _, error = clipse("compare", "losses=[clip,sanw_debias]", *overrides)
    assert code == 0, error


def test_one_process_at_a_time_works_on_a_comparison(clipse, quick, steps):
    with FileLock(open_series_folder("compare", configured(quick)).path / ".lock"):  # as another process holds it
        code, _, error = clipse("compare", "losses=[clip]", "seeds=[1]", *quick)
    assert code == 2
    assert "another process" in error
    assert len(error.splitlines()) == 1
    assert steps.count == 0


def test_locked_towers_are_scored_through_their_cached_features(small, tmp_path):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: row for row, word in enumerate(["[PAD]", "[UNK]", "a", "red", "blue", "green", "cup", "on"])}
    pieces = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(**sizes, vocab_size=8, intermediate_size=16, max_position_embeddings=64)
    transformers.BertModel(bert).save_pretrained(tmp_path / "text")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_max_length=64, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path / "text")
    vision = transformers.Dinov2Config(**sizes, image_size=28, patch_size=14, mlp_ratio=2)
    transformers.Dinov2Model(vision).save_pretrained(tmp_path / "vision")

    towers = [f"model.{side}={tmp_path / side}" for side in ("vision", "text")]
    dual = [*towers, "model.kind=dual", "model.image_size=28", "model.embed_dim=8", "trainer.max_epochs=1", "name=dual"]
    topical = ["data.topical.fraction=0.5", "data.topical.clusters=4"]
    config = configured([*[one for one in small if not one.startswith("model.")], *dual, *topical])
    found = compare(config, losses=["clip"], seeds=[0], split="test")

    records = read_records(config.data).splits["test"]
    model = RetrievalModel.from_pretrained(found.folder / "clipse" / "clip-s0" / "model")
    pixels = score_records(model, records).result.metrics
    assert found.rows[0].metrics == pytest.approx(pixels)


def test_a_parameter_holds_for_the_losses_that_weigh(quick):
    base = LossConfig(parameters={"alpha": 0.5})
    assert parse_loss(base, "clip").parameters == {}
    assert parse_loss(base, "sanw_debias:aggressive") == LossConfig(
        name="sanw_debias", preset="aggressive", parameters={"alpha": 0.5}
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["losses=[clip,sanw_debais]"],
            "loss.name=sanw_debais: unknown loss; known: clip, siglip, sanw_bandpass, sanw",
        ),
        (["losses=[sanw_debias:mild]"], "losses: sanw_debias:mild: sanw_debias has default, conservative, aggressive;"),
        (["losses=[clip:default]"], "losses: clip:default: clip has no presets; write NAME or NAME:PRESET"),
        (["losses=[]"], "losses=[]: give at least one, and each once, e.g. losses=[clip,sanw_debias]"),
        (["seeds=[]"], "seeds=[]: give at least one, and each once, e.g. seeds=[13,17,23]"),
        (["seeds=[1,1]"], "seeds=[1,1]: give at least one, and each once"),
        (["seeds=[a]"], "seeds: expected list[int], got ['a'] (list)"),
        (["split=dev"], "split: expected one of train, val, test, got 'dev' (str)"),
        (["trainer.devices=cpu:2"], "compare trains one run after another on one device: set trainer.devices=1"),
        (["loss.delta=0.4", "losses=[sanw_bandpass]"], "loss.name=sanw_bandpass does not take"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(clipse, quick, tmp_path, overrides, message):
    code, _, error = clipse("compare", *quick, *overrides)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_the_command_prints_the_table_and_refuses_another_configuration(clipse, quick, tmp_path):
    command = ["compare", "losses=[clip,sanw_debias]", "seeds=[3]", *quick]
    code, printed, error = clipse(*command)
    assert code == 0, error
    assert "minus clip" in printed
    assert "sanw_debias" in printed
    assert "one seed says nothing about the spread between seeds" in " ".join(printed.split())
    assert "sanw_debias, seed 3 (2 of 2)" in error
    folder = Path("runs/compare/some")
    code, _, error = clipse("eval", tmp_path / folder)
    assert code == 2
    assert f"{folder} is a series of several runs (`clipse compare`): name one of them, e.g. " in error
    assert error.rstrip().endswith(str(folder / "clipse" / "clip-s3"))
    code, _, error = clipse(*command, "optim.lr=5e-4")
    assert code == 2
    assert "was started with another configuration (lr: 0.001 → lr: 0.0005): resume with that, or name" in error


def test_help_shows_examples(clipse):
    for verb, example in (("compare", "losses=[clip,sanw_debias,sanw_bandpass]"), ("tune", "loss=sanw_bandpass")):
        code, printed, _ = clipse(verb, "--help")
        assert code == 0
        assert example in printed.replace("\n", "")
