"""What a person names as RUN or MODEL: a toy package whose models are a marker alone."""

import json
from dataclasses import dataclass

import pytest

from clip_common.runs import Run
from clip_common.runs.opening import check_made_by, find_model, make_marker, read_marker, write_marker
from clip_common.runs.resolve import resolve


def find(source, **arguments):
    return find_model(source, **({"package": "toy", "format": 2, "older": ("toy.json",)} | arguments))


def save(folder, **content):
    return write_marker(folder, content, package="toy", format=2).parent


def begin(root, package="toy", name="first", **arguments):
    return Run.create(package, config_yaml="seed: 1\n", name=name, root=root, **arguments)


def refused(source, *words, **arguments):
    with pytest.raises(ValueError) as caught:
        find(source, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(source), *words):
        assert word in message, f"{word!r} is not in: {message}"


def test_a_run_names_its_model_and_a_saved_folder_names_itself(tmp_path):
    run = begin(tmp_path)
    save(run.path / "model")
    saved = save(tmp_path / "saved", size=3)
    assert find(run.path) == run.path / "model"
    assert find(str(run.path / "model")) == run.path / "model"
    assert find(saved) == saved
    assert read_marker(saved, package="toy", format=2) == {"package": "toy", "format": 2, "size": 3}
    assert make_marker({"size": 3}, package="toy", format=2) == read_marker(saved, package="toy", format=2)


def test_a_saved_folder_may_hold_a_configuration_of_its_own(tmp_path):
    saved = save(tmp_path)
    (saved / "config.yaml").write_text("seed: 1\n")
    assert find(saved) == saved


def test_what_is_neither_run_nor_model_says_what_to_give(tmp_path):
    refused(tmp_path / "nowhere", "no such folder", "runs/toy/NAME", "save_pretrained")
    refused(tmp_path, "neither a run folder nor a saved model of toy", "runs/toy/NAME", "save_pretrained")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(tmp_path, "written by another program", "a model that toy saved")


def test_another_package_is_told_with_its_command(tmp_path):
    refused(save(tmp_path / "saved"), "is a model of toy, not of other", "the command `toy`", package="other")
    run = begin(tmp_path)
    refused(run.path, "is a run of toy, not of other", "the command `toy`", package="other")
    save(run.path / "model")
    refused(run.path, "is a model of toy, not of other", package="other")


def test_a_run_without_a_model_yet_says_how_to_finish_it(tmp_path):
    run = begin(tmp_path)
    (run.path / "model").mkdir()
    (run.path / "model" / "model.safetensors").touch()  # killed before the marker was written
    refused(run.path, "a run without a model yet", f"`toy train --resume {run.path}`")


def test_a_series_names_one_of_its_runs(tmp_path):
    series = begin(tmp_path, group="compare", verb="compare")
    assert series.path == tmp_path / "compare" / "first"
    refused(series.path, "a run of `toy compare`, which keeps no model", "`toy train`")
    for name in ("b-s0", "a-s0"):
        save(begin(series.path, name=name).path / "model")
    refused(series.path, "a series of several runs (`toy compare`)", f"e.g. {series.path / 'toy' / 'a-s0'}")
    assert find(series.path / "toy" / "a-s0").name == "model"
    refused(series.path, "is a run of toy, not of other", package="other")


@dataclass
class ToyConfig:
    seed: int = 0


def test_a_run_is_resumed_by_the_package_and_the_verb_that_made_it(tmp_path):
    run, other = begin(tmp_path), begin(tmp_path, package="other")
    assert resolve(ToyConfig, package="toy", resume=run.path) == ToyConfig(seed=1)
    check_made_by(run, package="toy", verb="train")
    with pytest.raises(ValueError, match="is a run of other, not of toy: open it with the command `other`"):
        resolve(ToyConfig, package="toy", resume=other.path)
    series = begin(tmp_path, group="compare", verb="compare")
    check_made_by(series, package="toy")
    with pytest.raises(ValueError, match="is a run of `toy compare`, not of `toy train`: resume it with its own"):
        check_made_by(series, package="toy", verb="train")


def test_a_run_of_several_fits_keeps_no_model(tmp_path):
    refused(begin(tmp_path, verb="cv").path, "a run of `toy cv`, which keeps no model: train one with `toy train`")


@pytest.mark.parametrize("name", ["config.json", "toy.json"])
def test_a_model_of_an_older_version_is_trained_again(tmp_path, name):
    for folder in (tmp_path / "saved", begin(tmp_path).path / "model"):
        folder.mkdir()
        (folder / name).write_text('{"format": 1}')
        with pytest.raises(ValueError, match=rf"{folder} was saved by an older version of toy.*: train it again"):
            find(folder.parent if folder.name == "model" else folder)
    write_marker(tmp_path / "saved", {}, package="toy", format=1)
    refused(tmp_path / "saved", "older version")
    write_marker(tmp_path / "saved", {}, package="toy", format=3)
    refused(tmp_path / "saved", "newer version of toy: update toy")


def test_a_run_of_an_older_version_is_run_again(tmp_path):
    run = begin(tmp_path)
    environment = json.loads((run.path / "environment.json").read_text())
    del environment["package"]
    (run.path / "environment.json").write_text(json.dumps(environment))
    refused(run.path, "made by an older version", "run it again")


@pytest.mark.parametrize(
    "damage", ["", "{", '{"package": "toy"', "\x00", '{"package": "toy"}', '{"package": "toy", "format": "2"}']
)
def test_a_damaged_marker_is_copied_again(tmp_path, damage):
    (save(tmp_path) / "config.json").write_text(damage)
    refused(tmp_path, "config.json is damaged", "copy the folder again")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    refused(tmp_path, "config.json is damaged", "copy the folder again")
    (tmp_path / "config.json").write_text("[]")
    refused(tmp_path, "written by another program")


def test_a_package_that_trains_with_another_verb_is_told_so(tmp_path):
    run = begin(tmp_path, verb="align")
    refused(run.path, "a run without a model yet", f"`toy align --resume {run.path}`", verb="align")
    refused(
        begin(tmp_path, name="other").path, "a run of `toy train`, which keeps no model", "`toy align`", verb="align"
    )
    old = save(tmp_path / "old")
    (old / "config.json").write_text('{"package": "toy", "format": 1}')
    refused(old, "train it again with `toy align`", verb="align")
