"""A weighting of another package: its parameters are set, checked, printed and searched like the built-in ones."""

import csv
import sys
from pathlib import Path

import pytest

MINE = """
from dataclasses import dataclass, field
from clipse.config import SearchRange

@dataclass(frozen=True, kw_only=True)
class Mine:
    tau: float = field(default=1.0, metadata={"search": SearchRange(0.1, 10.0, log=True)})
    power: int = field(default=2, metadata={"alias": "exponent", "search": SearchRange(1, 4)})
    sign: str = "minus"

    def log_weight(self, image_IF, text_IF, image_JF, text_JF):
        return (-1.0 if self.sign == "minus" else 1.0) * (text_IF @ text_JF.T / self.tau) ** self.power
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(code, "Class")` puts a distribution on the path that registers the class as the weighting `mine`."""

    def write(code: str, name: str = "Mine") -> None:
        site = tmp_path / "site"
        metadata = site / "mine-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[clipse.weightings]\nmine = mine:{name}\n")
        (site / "mine.py").write_text(code)
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        monkeypatch.syspath_prepend(site)

    return write


@pytest.fixture
def mine(install):
    install(MINE)


def losses(run: Path) -> list[str]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as stream:
        return [row["train/loss"] for row in csv.DictReader(stream) if row["train/loss"]]


@pytest.mark.usefixtures("mine")
def test_a_run_trains_with_the_parameters_it_is_given(clipse, small, tmp_path):
    command = ["train", *small, "trainer.max_epochs=1", "loss.name=mine"]
    runs = tmp_path / "runs" / "clipse"
    for name, parameters in {"plain": [], "same": ["loss.tau=1"], "sharp": ["loss.tau=0.1", "loss.exponent=1"]}.items():
        code, _, error = clipse(*command, *parameters, f"name={name}")
        assert code == 0, error
    assert losses(runs / "plain") == losses(runs / "same") != losses(runs / "sharp")
    assert "  tau: 0.1\n  power: 1\n" in (runs / "sharp" / "config.yaml").read_text()
    code, _, error = clipse("train", "--resume", runs / "sharp")  # the configuration is read back
    assert code == 0, error


@pytest.mark.usefixtures("mine")
def test_config_prints_the_parameters_that_are_set(clipse):
    code, printed, _ = clipse("config", "loss.name=mine", "loss.tau=2", "loss.exponent=3")
    assert code == 0
    assert "  name: mine\n  preset: default\n  tau: 2.0\n  power: 3\n  references: online\n" in printed
    assert "alpha" not in printed


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss.tua=1"], "loss.tua: unknown key; did you mean loss.tau?"),
        (["loss.tau=soft"], "loss.tau: expected float or null, got 'soft' (str)"),
        (["loss.exponent=1.5"], "loss.power: expected int or null, got 1.5 (float)"),
        (["loss.alpha=1"], "loss.name=mine does not take loss.alpha; it takes loss.tau, loss.exponent, loss.sign"),
        (["loss.preset=aggressive"], "loss.preset=aggressive: loss.name=mine has the presets default"),
        (["loss.name=sanw_debias", "loss.tau=1"], "loss.name=sanw_debias does not take loss.tau; it takes loss.alpha,"),
        (["loss.name=mien"], "loss.name=mien: unknown loss; known: clip, siglip, mine, sanw_bandpass, sanw_debias"),
    ],
)
def test_a_wrong_parameter_is_one_line(clipse, small, tmp_path, overrides, said):
    code, _, error = clipse("train", *small, "loss.name=mine", *overrides)
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("mine")
def test_tune_searches_the_parameters_that_state_a_range_and_are_not_set(clipse, small, tmp_path):
    quick = [*small, "trainer.max_epochs=1"]
    code, printed, error = clipse("tune", "loss=mine", "trials=3", "name=both", *quick)
    assert code == 0, error
    assert "loss.name=mine loss.tau=" in printed
    assert " loss.exponent=" in printed
    with (tmp_path / "runs" / "tune" / "both" / "trials.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["trial", "tau", "power", "rsum"]
    assert (rows[0]["tau"], rows[0]["power"]) == ("1.0", "2")  # the defaults first
    assert {row["power"] for row in rows} <= {"1", "2", "3", "4"}
    assert all(0.1 <= float(row["tau"]) <= 10 for row in rows)

    code, printed, error = clipse("tune", "loss=mine", "trials=1", "name=one", "loss.tau=3", *quick)
    assert code == 0, error
    assert "loss.name=mine loss.exponent=2\n" in printed
    code, _, error = clipse("tune", "loss=mine", "loss.tau=3", "loss.exponent=1", *quick)
    assert code == 2
    assert "loss=mine: every parameter is set (tau, power): leave at least one out" in error


@pytest.mark.usefixtures("mine")
def test_compare_gives_the_parameters_to_the_losses_that_weight(clipse, small):
    command = [
        "compare",
        "losses=[clip,mine]",
        "seeds=[1]",
        *small,
        "trainer.max_epochs=1",
        "name=some",
        "loss.tau=0.1",
    ]
    code, printed, error = clipse(*command)
    assert code == 0, error
    assert "mine" in printed


def test_a_weighting_that_cannot_be_imported_is_named(clipse, small, install):
    install("import absent_package")
    code, _, error = clipse("train", *small, "loss.name=mine")
    assert code == 2
    assert "loss.name=mine: mine:Mine cannot be imported (No module named 'absent_package'): reinstall" in error


def test_a_parameter_without_a_default_must_be_set(clipse, small, install):
    install(MINE.replace('sign: str = "minus"', "sign: str"))
    code, _, error = clipse("train", *small, "loss.name=mine")
    assert code == 2
    assert "loss.name=mine needs loss.sign=…" in error


def test_a_parameter_with_the_name_of_a_field_of_every_loss_is_refused(clipse, install):
    install(MINE.replace("sign", "form"))
    code, _, error = clipse("config", "loss.tau=1")
    assert code == 2
    assert "loss.form is a field of every loss: rename this parameter of the weighting mine" in error
