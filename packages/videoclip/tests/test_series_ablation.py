"""`videoclip ablate`: each row trains what it says, the table, and a series that goes on where it was."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clip_common.config import load_config
from videoclip import Config, ablate
from videoclip.data.manifest import read_manifest, write_manifest
from videoclip.report.plots import draw_ablation
from videoclip.scoring.predictions import Predictions
from videoclip.series.ablation import COLUMNS, ROWS, TABLES, row_config
from videoclip.training.modules import AlignmentModule

FAST = ["trainer.fast_dev_run=true", "name=some"]
SWITCHES = {  # map_guided, type, sigmoid gate, clip_weight, lambda_token, control
    "B0": (False, "spatiotemporal", False, 0, 0, "none"),
    "B1": (False, "spatiotemporal", False, 2, 0, "none"),
    "B2": (True, "spatiotemporal", False, 0, 0, "none"),
    "B3": (True, "spatiotemporal", False, 2, 0, "none"),
    "B4": (True, "spatiotemporal", False, 2, 0.1, "none"),
    "C1": (True, "channel", False, 2, 0, "none"),
    "C2": (True, "weighted_pool", False, 2, 0, "none"),
    "C3-sigmoid": (True, "spatiotemporal", True, 2, 0, "none"),
    "published": (True, "spatiotemporal", False, 2, 0, "none"),
    "shuffled": (True, "spatiotemporal", False, 2, 0, "shuffled"),
    "centre": (True, "spatiotemporal", False, 2, 0, "centre"),
    "uniform": (True, "spatiotemporal", False, 2, 0, "uniform"),
    "random": (True, "spatiotemporal", False, 2, 0, "random"),
}
"""What each row's run must have been trained with, where loss.clip_weight=2 is set."""


@pytest.fixture
def steps(monkeypatch):
    """Counts training steps; `steps.stop_at` raises before a step, as a kill would come."""

    class Steps:
        count, stop_at = 0, -1

    original = AlignmentModule.training_step

    def counted(self, batch, batch_idx):
        if Steps.count == Steps.stop_at:
            raise RuntimeError("stopped here")
        Steps.count += 1
        return original(self, batch, batch_idx)

    monkeypatch.setattr(AlignmentModule, "training_step", counted)
    return Steps


def configured(small, *overrides) -> Config:
    return load_config(Config, overrides=[*small, *FAST, *overrides])


def cells(table: Path) -> dict[str, dict[str, str]]:
    """ID → column → cell; each line of a Markdown table has as many."""
    lines = [line for line in table.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    parted = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]
    assert {len(line) for line in parted} == {len(parted[0])}
    assert set(parted[1]) == {"---"}
    return {line[0]: dict(zip(parted[0], line, strict=True)) for line in parted[2:]}


def test_the_whole_table(small, steps, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "videoclip.series.ablation.draw_ablation", draw_ablation
    )  # this picture is drawn, those of runs not
    said: list[str] = []
    config = configured(small, "loss.clip_weight=2", "model.map_guided_sigmoid_gate=true")
    found = ablate(config, seeds=[1], announce=said.append)
    assert said[4] == "B3: full method, seed 1 (5 of 22)"
    runs = {run.name.removesuffix("-s1"): run for run in (found.folder / "videoclip").iterdir()}
    assert runs.keys() == SWITCHES.keys()  # B3's run serves the linear gate and the test without maps, too
    assert steps.count == len(SWITCHES)
    for name, run in runs.items():
        trained = load_config(Config, config=run / "config.yaml")
        model, loss = trained.model, trained.loss
        switches = (model.map_guided, model.map_guided_type, model.map_guided_sigmoid_gate)
        if name in ("B0", "B1", "C1", "C2"):  # the gate's kind says nothing there
            switches = (*switches[:2], False)
        assert (*switches, loss.clip_weight, model.lambda_token, trained.data.control) == SWITCHES[name], name
        assert (trained.trainer.seed, trained.data.fold) == (1, 1)

    table = cells(found.table)
    assert list(table) == [*TABLES["all"], ""]
    for result in found.results:
        line, metrics = table[result.row.id], result.metrics[0]
        assert line["accuracy"] == f"{metrics['accuracy']:.3f}"
        assert line["macro F1"] == f"{metrics['macro_f1']:.3f}"
        shown = result.row.id not in ("B0", "B2", "B2 hidden", "uniform", "absent")
        assert bool(line["R@1 v→a"]) == bool(line["R@5 a→v"]) == shown, result.row.id
        assert bool(line["map corr"]) == (result.row.id not in ("uniform", "absent"))
        for switch in (*result.row.switches, *result.row.tested):
            assert f"`{switch}`" in line["switches"]
    assert table["C3 linear"]["macro F1"] == table["B3"]["macro F1"]
    assert table[""]["method"] == "always the most frequent class"
    assert table[""]["accuracy"] == "0.333"  # 2 of 6 clips
    assert found.plot.stat().st_size > 10_000
    assert (found.clips, found.subjects) == (6, 3)

    b3 = runs["B3"]
    kept = json.loads((b3 / "result.json").read_text())
    by_id = {result.row.id: result for result in found.results}
    assert by_id["B3"].metrics[0] == kept["test"]["metrics"]
    assert by_id["absent"].metrics[0] == kept["test-control=absent"]["metrics"]
    assert by_id["B3 hidden"].metrics[0] == kept["test-control=hidden"]["metrics"]
    # the embeddings hold no map, so hiding it changes none; as published, they do
    for row, same in (("B3", True), ("C1", True), ("published", False)):
        files = [runs[row] / f"predictions-test{name}.npz" for name in ("", "-control=hidden")]
        seen, hidden = map(Predictions.load, files)
        assert np.array_equal(seen.video_embed_ND, hidden.video_embed_ND) == same, row
        assert not np.array_equal(seen.logits_NK, hidden.logits_NK), row
    said_of = [Predictions.load(b3 / f"predictions-test{name}.npz") for name in ("", "-control=absent")]
    assert said_of[0].valid_N.all()
    assert not said_of[1].valid_N.any()
    assert by_id["B0"].against is None
    difference = by_id["B3"].metrics[0]["macro_f1"] - by_id["B0"].metrics[0]["macro_f1"]
    assert by_id["B3"].against.difference == pytest.approx(difference)


def test_stopped_it_goes_on_typed_again_it_trains_nothing_and_more_trains_what_is_missing(small, steps, tmp_path):
    whole = ablate(configured(small, f"runs={tmp_path / 'whole'}"), table="B", seeds=[0])
    assert steps.count == 6
    steps.count, steps.stop_at = 0, 3
    config = configured(small)
    with pytest.raises(RuntimeError, match="stopped here"):
        ablate(config, table="B", seeds=[0])
    steps.stop_at = -1
    again = ablate(config, table="B", seeds=[0])
    assert steps.count == 6
    assert [result.metrics for result in again.results] == [result.metrics for result in whole.results]
    assert again.table.read_text() == whole.table.read_text()

    assert ablate(config, table="B", seeds=[0]).results == again.results
    assert steps.count == 6
    assert len(ablate(config, table="B", seeds=[0, 1]).results[0].metrics) == 2
    assert steps.count == 12
    found = ablate(config, table="C", seeds=[0])
    assert steps.count == 15  # channel, weighted pooling, sigmoid; B0 and the linear gate lie there
    assert [result.row.id for result in found.results] == list(TABLES["C"])
    assert json.loads((found.folder / "result.json").read_text()).keys() == {"B", "C"}
    assert {file.name for file in found.folder.glob("*.md")} == {"ablation-B.md", "ablation-C.md"}


def test_without_a_map_in_the_test_the_model_is_told_of_none(small):
    """The rows of no map: what guides is predicted, in the shuffled control from other people's maps."""
    found = ablate(configured(small, "loss.clip_weight=2"), table="nomap", seeds=[0])
    assert [result.row.id for result in found.results] == list(TABLES["nomap"])
    for name, control in (("predicted", "none"), ("predicted-shuffled", "shuffled")):
        run = found.folder / "videoclip" / f"{name}-s0"
        trained = load_config(Config, config=run / "config.yaml")
        assert (trained.model.guide, trained.data.control) == ("predicted", control)
        assert (run / "predictions-test-control=hidden.npz").exists()


def test_seeds_test_on_different_people_and_the_means_are_numpys(small):
    found = ablate(configured(small), table="controls", seeds=[0, 1])
    assert (found.clips, found.subjects) == (12, 6)
    table = cells(found.table)
    for result in found.results:
        for name, column in COLUMNS.items():
            values = [metrics[name] for metrics in result.metrics if name in metrics]
            if values and result.aligned and len(values) == 2:
                expected = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
                assert table[result.row.id][column] == expected, (result.row.id, name)


def test_each_part_of_a_fold_column_is_tested_on_however_many_there_are(small, tmp_path):
    config, splits = configured(small, "data.fold=1"), ["a part"] * 7
    for seed, fold in ((5, 6), (6, 0)):
        one = row_config(ROWS[0], seed, config, splits, SimpleNamespace(path=tmp_path))
        assert (one.data.fold, one.trainer.seed, one.name) == (fold, seed, f"B0-s{seed}")


@pytest.mark.parametrize(
    ("overrides", "knobs", "message"),
    [
        ([], {"seeds": []}, r"seeds=\[\]: give at least one"),
        ([], {"seeds": [1, 1]}, r"seeds=\[1,1\]: give at least one, and each once"),
        (["trainer.devices=cpu:2"], {}, "ablate trains one run after another on one device"),
        (
            ["model.clip_backbone=2dcnn"],
            {"table": "B"},
            "row B4 of the table B: model.lambda_token: the token loss need",
        ),
        (["data.batch_size=19"], {}, "set data.batch_size to at most 18"),
    ],
)
def test_what_cannot_be_ablated_is_refused_before_anything_is_trained(small, tmp_path, overrides, knobs, message):
    with pytest.raises(ValueError, match=message):
        ablate(configured(small, *overrides), **knobs)
    assert not (tmp_path / "runs").exists()


def test_another_configuration_and_other_clips_are_not_put_beside_it(small, walks, tmp_path):
    records = read_manifest(walks / "manifest.csv")
    manifest = write_manifest(records, tmp_path / "set.csv")
    overrides = [f"data.root={manifest}"]
    ablate(configured(small, *overrides), table="B", seeds=[0])
    with pytest.raises(ValueError, match="was started with another configuration"):
        ablate(configured(small, *overrides, "optim.lr=5e-4"), table="B", seeds=[0])
    write_manifest(records[:-1], manifest)
    with pytest.raises(ValueError, match="the clips or labels of fold 4 have changed since it was started"):
        ablate(configured(small, *overrides), table="B", seeds=[0])
