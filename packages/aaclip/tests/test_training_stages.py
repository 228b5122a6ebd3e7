"""A run in two calls: one stage now and the other later, in the same folder, with the weights of a run in one call."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import kill_when, same, weights

from aaclip.detector.detector import Detector
from aaclip.released import training as released
from aaclip.training.experiment import resolve, train
from clip_common.config import ConfigError
from clip_common.runs import Run, read_rows

# the CLIP of these tests is random: it need not find a defect
pytestmark = pytest.mark.filterwarnings("ignore:image score not fitted")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def ran(small, tmp_path):
    """`ran("stages.image.epochs=0", stage="text")`: a call with the same folder; the first has all of `small`."""
    folder = tmp_path / "ckpt" / "mvtec, groß"

    def call(*more: str, stage: str = "both", whole: bool | None = None):
        given = [*(small if whole or (whole is None and not folder.exists()) else []), *more]
        return released.train(released.resolve(folder, overrides=given), save_path=folder, stage=stage)

    return call


def test_the_folder_is_the_run(ran, trained, tmp_path):
    done = ran()
    assert done.run.path == tmp_path / "ckpt" / "mvtec, groß"
    assert [entry.name for entry in (tmp_path / "ckpt").iterdir()] == ["mvtec, groß"]
    assert not list(tmp_path.rglob("registry.csv"))  # the folder is in no runs folder
    assert (done.left, done.images) == ((), 20)
    assert same(weights(done.run.path), weights(trained()))
    assert Detector.from_pretrained(done.run.path).classes.keys() == done.detector.classes.keys()


def test_stage_one_without_epochs_of_stage_two_then_stage_two(ran, trained):
    """The source document's two commands: the second names stage 1 again, or not."""
    first = ran("stages.image.epochs=0")
    assert first.detector is not None
    assert same(weights(first.run.path), weights(trained("stages.image.epochs=0")))
    started = first.run.ledger.phases()["text"]
    second = ran("stages.image.epochs=2", "stages.image.batch_size=8", "stages.text.epochs=2")
    assert same(weights(second.run.path), weights(trained()))
    assert second.run.ledger.phases()["text"] == started
    assert [row["phase"] for row in read_rows(second.run.path / "metrics.csv")] == ["text"] * 4 + ["image"] * 4
    assert resolve(resume=second.run.path).stages.image.epochs == 2
    assert len(json.loads((second.run.path / "environment.json").read_text())["resumed"]) == 1


def test_epochs_0_of_a_stage_that_is_done_mean_no_more_of_it(ran, trained):
    ran("stages.image.epochs=0")
    second = ran("stages.text.epochs=0", "stages.image.epochs=2")
    assert same(weights(second.run.path), weights(trained()))
    assert resolve(resume=second.run.path).stages.text.epochs == 2


@pytest.mark.parametrize("by_name", [False, True])
def test_stage_text_then_the_other(ran, trained, by_name):
    first = ran(stage="text")
    assert (first.detector, first.left, first.images) == (None, ("image",), 20)
    assert not (first.run.path / "model").exists()
    with pytest.raises(ValueError, match=r"run without a model yet: finish it with `aaclip train --resume"):
        Detector.from_pretrained(first.run.path)
    path, before = first.run.path, files(first.run.path)
    again = ran(stage="text")
    assert (again.detector, again.left, again.images) == (None, ("image",), 20)
    assert files(path) == before  # nothing to do
    second = ran(stage="image") if by_name else train(resolve(resume=path), resume=path)
    assert second.left == ()
    assert same(weights(path), weights(trained()))


def test_stage_two_may_be_set_otherwise_until_it_is_begun(ran, trained):
    ran(stage="text")
    second = ran("stages.image.lr=1e-2", stage="image")
    assert same(weights(second.run.path), weights(trained("stages.image.lr=1e-2")))


def test_a_finished_run_stays_as_it_is(ran, parts):
    run = ran().run
    described = json.loads((run.path / "model" / "config.json").read_text())
    (run.path / "model" / "config.json").write_text(json.dumps(described | {"threshold": {
        "value": 0.5, "method": "given"}}))  # fmt: skip
    before = files(run.path)
    for whole in (True, False):
        again = ran(whole=whole)
        assert (again.images, again.left) == (20, ())
        assert again.detector.threshold.value == 0.5
    ran("stages.image.epochs=0", stage="text")
    assert files(run.path) == before


def test_a_detector_that_went_away_is_made_again(ran, trained):
    run = ran().run
    (run.path / "model").rename(run.path.parent / "away")
    assert ran(stage="text").detector is not None
    assert same(weights(run.path), weights(trained()))


@pytest.mark.parametrize(
    ("stage", "more", "match"),
    [
        (
            "both",
            ["stages.text.lr=1"],
            r"was started with stages.text.lr=0.001, not 1.0: leave that out to continue",
        ),
        ("both", ["stages.text.epochs=3"], r"started with stages.text.epochs=2, not 3"),
        ("both", ["adapters.kind=linear"], r'started with adapters.kind="bottleneck", not "linear"'),
        ("both", ["data.classes=[mug]"], r'started with data.classes=null, not \["mug"\]'),
        ("image", ["stages.image.epochs=0"], r"--stage image: stages.image.epochs=0 leaves it out"),
    ],
)
def test_what_stage_one_rests_on_stays(ran, stage, more, match):
    run = ran(stage="text").run
    before = files(run.path)
    with pytest.raises(ValueError, match=match) as error:
        ran(*more, stage=stage)
    assert "\n" not in str(error.value)
    assert files(run.path) == before


def test_stage_one_is_closed_where_stage_two_was_begun(ran):
    ran("stages.text.epochs=0")
    with pytest.raises(ValueError, match=r"started with stages.text.epochs=0, not 2"):
        ran("stages.text.epochs=2")


def test_a_preset_named_again_is_taken_whole(small, tmp_path):
    """`--config` stands before the run's own configuration, so that the same line goes on."""
    (tmp_path / "own.yaml").write_text("stages: {image: {milestones: [7]}}")
    for stage in ("text", "both"):
        settings = released.resolve(tmp_path / "run", config=str(tmp_path / "own.yaml"), overrides=small)
        done = released.train(settings, save_path=tmp_path / "run", stage=stage)
    assert done.left == ()
    settings = released.resolve(tmp_path / "run", config="official", overrides=small)
    with pytest.raises(ValueError, match=r"was started with .*: leave that out"):
        released.train(settings, save_path=tmp_path / "run")


def test_a_run_that_was_begun_by_name_goes_on_by_its_folder(small, trained, tmp_path):
    first = train(resolve(overrides=[*small, "name=first"]), stage="text")
    folder = tmp_path / "runs" / "aaclip" / "first"
    assert first.run.path == folder
    released.train(released.resolve(folder), save_path=folder)
    assert same(weights(folder), weights(trained()))
    with pytest.raises(ValueError, match=r'started with name="first", not "second"'):
        released.train(released.resolve(folder, overrides=["name=second"]), save_path=folder)


def test_other_images_are_no_ground_to_go_on(ran, parts, tmp_path):
    root = Path(shutil.copytree(parts, tmp_path / "set"))
    run = ran(f"data.root={root}", stage="text").run
    before = files(run.path)
    next((root / "mug" / "train" / "good").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"started with other images: 1 of them are gone or changed, 0 are new"):
        ran(stage="image")
    assert files(run.path) == before


@pytest.mark.parametrize(
    ("stage", "more", "match"),
    [
        ("image", [], r"--stage image: stage 1 is not done: start with --stage text, or leave it out"),
        ("text", ["stages.text.epochs=0"], r"--stage text: stages.text.epochs=0 leaves it out"),
        ("text", ["data.root=gone"], r"gone: no such folder"),
    ],
)
def test_what_a_new_run_cannot_do_leaves_nothing(ran, tmp_path, stage, more, match):
    with pytest.raises(ValueError, match=match):
        ran(*more, stage=stage)
    assert not (tmp_path / "ckpt").exists()
    assert not (tmp_path / "runs").exists()


def test_stage_two_alone_where_stage_one_is_left_out(ran, trained):
    assert same(weights(ran("stages.text.epochs=0", stage="image").run.path), weights(trained("stages.text.epochs=0")))


def test_a_folder_of_somebody_else_is_left_alone(small, saved, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "text_adapter.pth").write_text("weights")
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (theirs, saved, file):
        settings = released.resolve(folder, overrides=small)
        with pytest.raises(ValueError, match=rf"{folder} exists and is no run of aaclip: name a new folder"):
            released.train(settings, save_path=folder)
    assert [entry.name for entry in theirs.iterdir()] == ["text_adapter.pth"]
    assert file.read_text() == "mine"


def test_an_empty_folder_and_names_without_a_parent(small, tmp_path, monkeypatch, trained):
    monkeypatch.chdir(tmp_path)
    Path("made").mkdir()
    for folder in ("made", "sub/../new"):
        settings = released.resolve(Path(folder), overrides=[*small, "stages.image.epochs=0"])
        if folder != "made":
            Path("sub").mkdir()
        assert released.train(settings, save_path=Path(folder)).run.path == Path(folder)
        assert same(weights(tmp_path / folder), weights(trained("stages.image.epochs=0")))
    with pytest.raises(ValueError, match=r"exists and is no run of aaclip"):
        released.train(settings, save_path=Path())


def test_damaged_configurations_of_a_run_are_one_line(ran, tmp_path):
    path = ran(stage="text").run.path
    (path / "config.yaml").write_text("stages: {txet: 1}")
    with pytest.raises(ConfigError, match=r"stages.txet"):
        ran()


def test_two_at_once_do_not_train_in_one_folder(ran):
    run = ran(stage="text").run
    code = (
        "import sys; from clip_common.runs import Run\n"
        "with Run.open(sys.argv[1]).locked(): print(1, flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, run.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "1\n"
    before = files(run.path)
    try:
        with pytest.raises(ValueError, match="is being trained by another process"):
            ran("stages.image.lr=3", stage="image")
    finally:
        other.communicate("\n")
    assert files(run.path) == before


def killed(command: list[str], folder: Path, *, phase: str, step: int) -> None:
    """Start a run, and kill it once it has logged this step of a phase."""

    def reached() -> bool:
        return any(row["phase"] == phase and int(row["step"]) >= step for row in read_rows(folder / "metrics.csv"))

    kill_when(reached, command)


LONGER = "stages.image.epochs=10"
"""Steps enough to be killed in the midst of stage 2."""


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "step"), [("text", 3), ("image", 2)])
def test_the_same_line_again_after_a_kill(aaclip, small, trained, tmp_path, phase, step):
    folder = tmp_path / "ckpt"
    line = ["train", *small, LONGER, "trainer.checkpoint_every=1", "--save_path", str(folder)]
    killed([sys.executable, "-m", "aaclip", *line], folder, phase=phase, step=step)
    code, printed, error = aaclip(*line)
    assert code == 0, error
    assert f"aaclip test {folder}" in printed.replace("\n", " ")
    assert same(weights(folder), weights(trained(LONGER)))
    steps = [int(row["step"]) for row in read_rows(folder / "metrics.csv")]
    assert steps == [*range(1, 5), *range(1, 21)]


@pytest.mark.slow
def test_a_kill_in_the_second_call_of_a_run_that_was_whole(aaclip, small, trained, tmp_path):
    folder = tmp_path / "ckpt"
    first = [*small, "stages.image.epochs=0", "trainer.checkpoint_every=1"]
    assert aaclip("train", *first, "--save_path", folder)[0] == 0
    assert (folder / "model").exists()
    line = ["train", "--image_epoch=10", "--save_path", str(folder)]
    killed([sys.executable, "-m", "aaclip", *line], folder, phase="image", step=2)
    assert not (folder / "model").exists()  # of stage 1 alone: not this run's any more
    assert aaclip(*line)[0] == 0
    assert same(weights(folder), weights(trained(LONGER)))
    assert Run.open(folder).ledger.done("model")
