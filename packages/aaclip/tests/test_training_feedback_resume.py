"""Feedback loops killed anywhere and resumed: bit for bit those that were not."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from helpers.commands import refused, succeeded
from helpers.runs import kill_when, same, weights

from aaclip.detector.files import list_loops
from clip_common.runs import Run, read_rows
from clip_common.tensors import read_tensors

# the CLIP of these tests is random: it need not find a defect
pytestmark = pytest.mark.filterwarnings("ignore:image score not fitted")

SLOWER = (
    "feedback.text_epochs=[3]",
    "feedback.image_epochs=[4]",
    "stages.text.batch_size=4",
    "stages.image.batch_size=4",
)
"""Steps enough to be killed between them: 9 and 12 in each loop."""
SHORT = ("feedback.loops=2", "feedback.held_out=0.4")


def equal(run: Path, other: Path) -> bool:
    """Return whether the models, the loops' files and the figures of two runs are the same, bit for bit."""
    files = [list_loops(one) for one in (run, other)]
    return (
        same(weights(run), weights(other))
        and files[0].keys() == files[1].keys()
        and all(same(read_tensors(files[0][loop]), read_tensors(files[1][loop])) for loop in files[0])
        and Run.open(run).result == Run.open(other).result
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "step"), [("loop1-text", 4), ("loop1-image", 5), ("loop2-text", 4), ("loop2-image", 11)]
)
def test_killed_in_a_loop_and_resumed_equals_uninterrupted(aaclip, small, looped, tmp_path, phase, step):
    line = ["feedback", *small, *SHORT, *SLOWER, "name=killed", "trainer.checkpoint_every=1"]
    run = tmp_path / "runs" / "aaclip" / "killed"

    def reached():
        rows = read_rows(run / "metrics.csv")
        return any(row["phase"] == phase and int(row["step"]) >= step for row in rows)

    kill_when(reached, [sys.executable, "-m", "aaclip", *line])
    if phase == "loop2-text":
        refused(aaclip("predict", run, "x.png", "--name=mug"), f"finish it with `aaclip feedback --resume {run}`")
    printed = succeeded(aaclip("feedback", "--resume", run))
    assert f"aaclip compare {run}" in printed.replace("\n", "")
    assert equal(run, looped(*SLOWER, "trainer.checkpoint_every=1"))
    steps = [(row["phase"], int(row["step"])) for row in read_rows(run / "metrics.csv")]
    assert steps == [
        (f"loop{loop}-{stage}", number)
        for loop in (1, 2)
        for stage, last in (("text", 9), ("image", 12))
        for number in range(1, last + 1)
    ]


@pytest.mark.parametrize("lost", ["loop1-score", "loop2-text", "loop2-score", "model"])
def test_a_run_that_ended_before_a_phase_goes_on_from_there(aaclip, looped, tmp_path, lost):
    """Later phases are forgotten, as by a kill between two of them; what is left on disk is not trusted."""
    whole = looped()
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    phases = Run.open(run).ledger.phases()
    order = [f"loop{loop}-{part}" for loop in (1, 2) for part in ("text", "image", "score")] + ["model"]
    kept = {name: phases[name] for name in order[: order.index(lost)]} | {"model": {"started": "then"}}
    (run / "phases.json").write_text(json.dumps(kept))
    shutil.rmtree(run / "model")
    for phase in order[order.index(lost) :]:
        shutil.rmtree(run / "checkpoints" / phase, ignore_errors=True)
    for loop, file in list_loops(run).items():
        if f"loop{loop}-score" not in kept:
            file.write_bytes(b"half")
    succeeded(aaclip("feedback", "--resume", run))
    assert equal(run, whole)


def test_a_finished_run_stays_as_it_is(aaclip, looped, tmp_path):
    run = Path(shutil.copytree(looped(), tmp_path / "run"))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    printed = succeeded(aaclip("feedback", "--resume", run))
    assert "held-out images: 8" in printed
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_other_images_are_no_ground_to_go_on(aaclip, small, looped, parts, tmp_path):
    root = Path(shutil.copytree(parts, tmp_path / "set"))
    line = [*small, *SHORT, "feedback.text_epochs=[1]", "feedback.image_epochs=[1]", f"data.root={root}", "name=moved"]
    succeeded(aaclip("feedback", *line))
    run = tmp_path / "runs" / "aaclip" / "moved"
    shutil.rmtree(run / "model")
    next((root / "mug" / "train" / "good").iterdir()).unlink()
    refused(aaclip("feedback", "--resume", run), "was started with other images: 1 of them are gone or changed")
    refused(aaclip("feedback", "--resume", run, "feedback.loops=3"), "keeps the run's own configuration")
