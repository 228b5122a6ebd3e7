"""`aaclip ablate`: each arm trains what it says, the table, and a series that goes on where it was."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import get_args

import pytest
import yaml
from helpers.commands import refused, succeeded

from aaclip.cli.series import Area
from aaclip.config import AblationArea, Config
from aaclip.detector.detector import Detector
from aaclip.scoring.score import JUDGED
from aaclip.series.ablation import ARMS, BASE, Arm, Result, ablate, alternate, change, describe
from aaclip.training.modules import ImageStage, TextStage
from clip_common.config import apply_overrides, load_config
from clip_common.metrics import Paired

ORDER = tuple(arm for arm in ARMS if arm.area == "order")


@pytest.fixture
def steps(monkeypatch):
    """Counts training steps; `steps.stop_at` raises before a step, as a kill would come."""

    class Steps:
        count, stop_at = 0, -1

    for stage in (TextStage, ImageStage):

        def counted(self, batch, batch_idx, original=stage.training_step):
            if Steps.count == Steps.stop_at:
                raise RuntimeError("stopped here")
            Steps.count += 1
            return original(self, batch, batch_idx)

        monkeypatch.setattr(stage, "training_step", counted)
    return Steps


@pytest.fixture
def settings(small) -> Config:
    return load_config(Config, overrides=[*small, "name=some"])


pytestmark = pytest.mark.filterwarnings("ignore:image score not fitted")  # a random CLIP need not find a defect


def _leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        yield from _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


def test_each_arm_changes_what_it_names_and_nothing_else(settings):
    assert {arm.area for arm in ARMS} == set(get_args(AblationArea)) == set(get_args(Area))
    for arm in ARMS:
        if not arm.alternating:
            own, changed = (dict(_leaves(asdict(one))) for one in (settings, change(settings, arm)))
            differing = {name: value for name, value in changed.items() if own[name] != value}
            wanted = dict(switch.split("=") for switch in arm.switches)
            values = {name: yaml.safe_load(value) for name, value in wanted.items()}
            assert {name: value for name, value in values.items() if own[name] != value} == differing


def test_loops_share_the_epochs_of_the_stages(settings):
    settings = apply_overrides(settings, ["stages.text.epochs=5", "stages.image.epochs=1"])
    assert {"feedback.text_epochs=[3, 2]", "feedback.image_epochs=[1, 1]"} < set(alternate(settings))


def test_the_command(aaclip, small, other_parts, steps, tmp_path):
    command = ["ablate", *small, "name=some", "--test", other_parts, "--area", "levels"]
    result = aaclip(*command, "seeds=[0,1]")
    printed = " ".join(succeeded(result).split())
    assert "levels: learned weights, seed 1 (4 of 4)" in result[2]
    for words in ("20 images of teile, zwei", "seeds 0, 1", "minus base"):
        assert words in printed
    folder = tmp_path / "runs" / "ablate" / "some"
    names = ["base-s0", "base-s1", "levels-learned-weights-s0", "levels-learned-weights-s1"]
    assert sorted(run.name for run in (folder / "aaclip").iterdir() if run.is_dir()) == names
    learned = [Detector.from_pretrained(folder / "aaclip" / name).model.level_logits.abs().sum() > 0 for name in names]
    assert learned == [False, False, True, True]
    with (folder / "ablation-levels.csv").open(encoding="utf-8", newline="") as stream:
        base, arm = csv.DictReader(stream)
    difference = float(arm["judged"]) - float(base["judged"])
    assert difference == pytest.approx(sum(float(arm[key]) - float(base[key]) for key in JUDGED) / 3)
    assert float(arm["judged difference"]) == pytest.approx(difference, abs=1e-6)
    assert float(arm["judged low"]) <= difference <= float(arm["judged high"])
    assert base["verdict"] == base["judged difference"] == ""
    table = (folder / "ablation-levels.md").read_text(encoding="utf-8")
    assert "| levels: learned weights |" in table
    assert "one in twenty" in table
    assert (folder / "ablation-levels.png").stat().st_size > 10_000
    kept = json.loads((folder / "result.json").read_text(encoding="utf-8"))["levels"]
    assert kept["seeds"] == [0, 1]
    assert len(kept["arms"]["base"]["metrics"]) == 2

    before = steps.count
    succeeded(aaclip(*command, "seeds=[0,1]"))
    assert steps.count == before  # nothing is trained twice
    refused(aaclip(*command, "loss.orthogonal=0.2"), "another configuration")


def test_a_killed_series_ends_as_an_uninterrupted_one(settings, other_parts, steps, monkeypatch):
    arms = [Arm("loss", "no orthogonal term", ("loss.orthogonal=0",))]
    monkeypatch.setattr("aaclip.series.ablation.ARMS", arms)
    whole = ablate(replace(settings, name="whole"), other_parts, seeds=[3])
    trained = steps.count
    steps.count, steps.stop_at = 0, trained - 1
    with pytest.raises(RuntimeError, match="stopped here"):
        ablate(settings, other_parts, seeds=[3])
    steps.stop_at = -1
    resumed = ablate(settings, other_parts, seeds=[3])
    assert steps.count < 2 * trained - 1
    assert [result.metrics for result in resumed.results] == [result.metrics for result in whole.results]
    assert [result.against for result in resumed.results] == [result.against for result in whole.results]


def test_alternating_runs_both_stages_twice(settings, other_parts, monkeypatch):
    monkeypatch.setattr("aaclip.series.ablation.ARMS", [arm for arm in ORDER if arm.alternating])
    found = ablate(settings, other_parts, seeds=[0], area="order")
    run = found.folder / "aaclip" / "order-alternating-s0"
    phases = json.loads((run / "phases.json").read_text(encoding="utf-8"))
    assert [phase for phase in phases if phase.startswith("loop")][:2] == ["loop1-text", "loop1-image"]
    assert "loop2-image" in phases
    assert found.results[1].values("judged")


def test_verdicts():
    def judged(low, high):
        return Result(ARMS[0], [], {"judged": Paired(difference=(low + high) / 2, low=low, high=high, p=1.0)}).verdict

    assert (judged(0.01, 0.03), judged(-0.03, -0.01)) == ("better", "worse")
    assert judged(-0.01, 0.03) == judged(0.0, 0.0) == "no difference shown"
    assert Result(BASE, [], {}).verdict == ""


def test_bad_input(aaclip, small, parts, other_parts, tmp_path):
    given = ["ablate", *small, "name=some", "--area", "levels"]
    for more, words in (
        (["--test", other_parts, "seeds=[]"], "seeds=[]"),
        (["--test", other_parts, "seeds=[1,1]"], "each once"),
        (["--test", parts], "are in a test set too"),
        (["--test", tmp_path / "none"], "none"),
        (["--test", other_parts, "trainer.devices=2"], "one device"),
    ):
        refused(aaclip(*given, *more), words)
    assert not (tmp_path / "runs" / "ablate").exists()


def test_names_of_runs_are_file_names():
    for arm in ARMS:
        assert describe(arm).isascii()
        assert not set(describe(arm)) & set('/\\<>|?*"')
