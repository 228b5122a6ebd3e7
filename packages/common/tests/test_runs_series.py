"""Several runs in one folder, trained by a toy package."""

from dataclasses import dataclass, field

import pytest

from clip_common.reporting import silent
from clip_common.runs import Run
from clip_common.runs.series import (
    check_choices,
    check_same_data,
    hash_items,
    member_config,
    open_series,
    split_options,
    train_member,
)


@dataclass
class Data:
    root: str = "photos"
    cache_dir: str | None = None


@dataclass
class Config:
    name: str | None = None
    runs: str = "runs"
    seed: int = 0
    data: Data = field(default_factory=Data)


@dataclass
class Options:
    seeds: list[int] = field(default_factory=lambda: [0])


@pytest.fixture
def series(tmp_path):
    return open_series("compare", Config(runs=str(tmp_path)), package="toy", name="first")


def test_a_series_is_opened_again_with_its_own_configuration_only(series, tmp_path):
    assert series.path == tmp_path / "compare" / "first"
    assert (series.package, series.verb) == ("toy", "compare")
    assert "name: first" in series.config_yaml
    assert open_series("compare", Config(runs=str(tmp_path)), package="toy", name="first").path == series.path
    with pytest.raises(ValueError, match=r"another configuration \(seed: 0 → seed: 1\)"):
        open_series("compare", Config(runs=str(tmp_path), seed=1), package="toy", name="first")


def test_a_member_writes_into_the_series_and_shares_the_cache(series, tmp_path):
    config = Config(runs=str(tmp_path))
    member = member_config(config, series, name="s0")
    assert (member.name, member.runs) == ("s0", series.path.as_posix())
    assert member.data.cache_dir == (tmp_path / "cache").as_posix()
    assert config == Config(runs=str(tmp_path))
    own = Config(runs=str(tmp_path), data=Data(cache_dir="mine"))
    assert member_config(own, series, name="s0").data.cache_dir == "mine"


def test_a_member_is_trained_resumed_or_reused(series, tmp_path):
    calls, fail = [], True

    def train(config, *, resume, reporter):
        calls.append((config.name, resume))
        if resume is None:
            Run.create("toy", config_yaml="", name=config.name, root=config.runs)
        if fail:
            raise KeyboardInterrupt

    member = member_config(Config(runs=str(tmp_path)), series, name="s0")
    with pytest.raises(KeyboardInterrupt):
        train_member(series, member, train, reporter=silent)
    fail = False
    runs = [train_member(series, member, train, reporter=silent) for _ in range(2)]
    assert [run.path for run in runs] == [series.path / "toy" / "s0"] * 2
    assert calls == [("s0", None), ("s0", series.path / "toy" / "s0")]


def test_data_that_changed_are_refused_and_new_splits_are_added(series):
    check_same_data(series, {"train": [("a.png", ["a dog"])]}, what="captions")
    check_same_data(series, {"train": [("a.png", ["a dog"])], "val": []}, what="captions")
    with pytest.raises(ValueError, match=r"the captions of train, val have changed since it was started: restore them"):
        check_same_data(series, {"train": [("a.png", ["a cat"])], "val": ["b"]}, what="captions")
    check_same_data(series, {"train": [("a.png", ["a dog"])]}, what="captions")


def test_items_hash_like_their_json():
    assert hash_items([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"  # sha256 of []
    assert hash_items([("a", 1)]) == hash_items(iter([["a", 1]])) != hash_items([("a", 2)])


def test_a_verbs_options_are_split_from_the_configurations():
    options, rest = split_options(Options, ["seeds=[1,2]", "seed=3", "data.root=x"], own=("seeds",))
    assert (options, rest) == (Options(seeds=[1, 2]), ["seed=3", "data.root=x"])
    with pytest.raises(ValueError, match="seeds: expected"):
        split_options(Options, ["seeds=[a]"], own=("seeds",))


@pytest.mark.parametrize("given", [[], [1, 2, 1]])
def test_a_list_option_needs_values_each_once(given):
    check_choices("seeds", [1, 2], example="[0,1]")
    shown = ",".join(map(str, given))
    with pytest.raises(ValueError) as caught:
        check_choices("seeds", given, example="[0,1]")
    assert str(caught.value) == f"seeds=[{shown}]: give at least one, and each once, e.g. seeds=[0,1]"
