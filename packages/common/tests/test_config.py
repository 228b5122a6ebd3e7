"""Configuration: resolved values, and one line for each mistake."""

import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import pytest

from clip_common.config import ConfigError, OptimConfig, TrainerConfig, apply_overrides, load_config, to_yaml


@dataclass
class Loss:
    name: str = "clip"
    lam: float | None = field(default=None, metadata={"alias": "lambda"})
    form: Literal["infonce", "decoupled"] = "infonce"
    widths: list[int] = field(default_factory=lambda: [64, 32])


@dataclass
class Model:
    pretrained: str | None = None
    frozen: bool = False
    architecture: dict[str, Any] | None = None
    loss: Loss = field(default_factory=Loss)


@dataclass
class Config:
    name: str | None = None
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def load(*overrides: str, config: str | Path | None = None) -> Config:
    return load_config(Config, config=config, overrides=overrides)


def message(*overrides: str, config: str | Path | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load(*overrides, config=config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_then_file_then_overrides(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("loss:\n  name: siglip\n  form: decoupled\noptim: {lr: 1e-3}\ntrainer:\n")
    config = load("optim.lr=3e-5", "optim.betas=[0.8, 0.9]", "loss.widths=[8]", config=file)
    assert (config.loss.name, config.loss.form, config.loss.widths) == ("siglip", "decoupled", [8])
    assert (config.optim.lr, config.optim.betas) == (3e-5, (0.8, 0.9))
    assert config.trainer == TrainerConfig()


def test_the_printed_yaml_reads_back_to_an_equal_configuration(tmp_path):
    config = load(
        "loss.lambda=2", "name=weiß", "model.architecture={width: 8, vision: {layers: 2}}", "trainer.ema=0.99"
    )
    file = tmp_path / "printed.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load(config=file) == config


@pytest.mark.parametrize("name", ["007", "no", "1e3", "a=b", "läuft", "null and void", "x: y"])
def test_text_is_taken_literally(name):
    assert load(f"name={name}").name == name


def test_null_and_nothing_unset_an_optional_text():
    assert load("name=null").name is None
    assert load("name=").name is None
    assert load("name='null'").name == "null"


def test_an_alias_sets_its_field(tmp_path):
    assert load("loss.lambda=2").loss.lam == 2.0
    assert load("loss.lam=2").loss.lam == 2.0
    file = tmp_path / "alias.yaml"
    file.write_text("loss: {lambda: 3}")
    assert load(config=file).loss.lam == 3.0


def test_a_free_form_section_takes_any_key():
    assert load("model.architecture.vision.width=8").model.architecture == {"vision": {"width": 8}}


def test_an_interpolation_follows_another_field(tmp_path):
    file = tmp_path / "follow.yaml"
    file.write_text("optim: {lr: 0.5, weight_decay: '${optim.lr}'}")
    assert load(config=file).optim.weight_decay == 0.5


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("loss.nmae=clip", "loss.name"),
        ("los.name=clip", "loss.name"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("max_epochs=3", "trainer.max_epochs"),
        ("lr=3", "optim.lr"),
        ("optim.max_epochs=3", "trainer.max_epochs"),
        ("loss.lamda=3", "loss.lambda"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, nearest):
    assert message(override) == f"{override.partition('=')[0]}: unknown key; did you mean {nearest}?"


def test_a_key_that_resembles_nothing_lists_what_there_is():
    assert message("loss.zzzzzz=1") == "loss.zzzzzz: unknown key; loss has name, lam, form, widths, lambda"
    assert message("trainer.seed.x=1") == "trainer.seed.x: unknown key; trainer.seed has no fields"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.max_epochs=ten", "trainer.max_epochs: expected int, got 'ten' (str)"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs: expected int, got 1.5 (float)"),
        ("trainer.ema=high", "trainer.ema: expected float or null, got 'high' (str)"),
        ("optim.lr=null", "optim.lr: expected float, got None (NoneType)"),
        ("optim.betas=[0.9]", "optim.betas: expected tuple[float, float], got [0.9] (list)"),
        ("loss.widths=[a]", "loss.widths: expected list[int], got ['a'] (list)"),
        ("model.frozen=maybe", "model.frozen: expected bool, got 'maybe' (str)"),
        ("loss.form=nce", "loss.form: expected one of infonce, decoupled, got 'nce' (str)"),
        ("optim.lr=${nowhere}", "optim.lr: expected float, got '${nowhere}' (str)"),
    ],
)
def test_a_wrong_value_names_field_type_and_value(override, expected):
    assert message(override) == expected


def test_a_section_is_not_a_value(tmp_path):
    assert message("loss=clip") == "loss: is a section; set one of its fields, e.g. loss.name=…"
    file = tmp_path / "section.yaml"
    file.write_text("loss: clip")
    assert message(config=file) == "loss: is a section; set one of its fields, e.g. loss.name=…"


def test_an_override_needs_an_equals_sign():
    assert message("loss.name") == "'loss.name': an override is written section.field=value"


def test_mistakes_in_a_file_are_named_likewise(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("loss: {nmae: clip}")
    assert message(config=file) == "loss.nmae: unknown key; did you mean loss.name?"
    file.write_text("loss: {name: no}")
    assert message(config=file) == "loss.name: expected str, got False (bool)"
    file.write_text("loss: {name: [")
    assert message(config=file).startswith(f"{file}: not readable as YAML: ")
    file.write_text("- loss")
    assert message(config=file) == f"{file}: expected sections with fields, got a list"


def test_a_named_configuration_comes_with_the_package(tmp_path, monkeypatch):
    configs = tmp_path / "some_package" / "configs"
    configs.mkdir(parents=True)
    (configs.parent / "__init__.py").touch()
    (configs / "scratch.yaml").write_text("loss: {name: siglip}")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_config(Config, config="scratch", package="some_package").loss.name == "siglip"
    with pytest.raises(ConfigError, match="'scrtch': neither a file nor a known name; some_package knows scratch"):
        load_config(Config, config="scrtch", package="some_package")


@pytest.mark.parametrize("devices", ["auto", "cpu", "cpu:2", "4", "0,1", "10"])
def test_devices_are_named_as_documented(devices):
    assert load(f"trainer.devices={devices}").trainer.devices == devices
    assert message(f"trainer.devices={devices}:x").startswith("trainer.devices: expected auto, cpu, cpu:2, a count")


@pytest.mark.parametrize(
    "knob", ["max_epochs=0", "accumulate=0", "checkpoint_every=0", "ema=1", "grad_clip=0", "seed=-1"]
)
def test_a_knob_out_of_its_range_is_named(knob):
    name, _, value = knob.partition("=")
    assert message(f"trainer.{knob}").startswith(f"trainer.{name}: expected ")
    assert message(f"trainer.{knob}").endswith(f"got {float(value) if name in ('ema', 'grad_clip') else value}")


@pytest.mark.parametrize("knob", ["lr=-1.0", "lr=.nan", "weight_decay=-0.1", "eps=-1.0", "warmup_epochs=-1.0"])
def test_an_optimizer_s_knob_out_of_its_range_is_named(knob):
    name, _, value = knob.partition("=")
    assert message(f"optim.{knob}") == f"optim.{name}: expected a number from 0, got {float(value.strip('.'))}"


def test_betas_out_of_their_range_are_named():
    assert message("optim.betas=[0.9, 1.0]") == "optim.betas: expected two decays from 0 to below 1, got [0.9, 1.0]"


def test_every_shared_field_says_what_it_is():
    source = Path(sys.modules[TrainerConfig.__module__].__file__).read_text()
    for section in (OptimConfig, TrainerConfig):
        for each in fields(section):
            line = source.index(f"    {each.name}: ", source.index(f"class {section.__name__}"))
            assert source[line:].split("\n")[1].startswith('    """'), each.name


def test_reading_a_configuration_does_not_import_torch():
    code = "import sys, clip_common.config as c; c.load_config(c.TrainerConfig); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


EXTRA = {
    "tau": ("tau", float | None),
    "temperature": ("tau", float | None),
    "kernel": ("kernel", Literal["box", "hat"]),
}


@dataclass
class Open:
    name: str = "clip"
    parameters: dict[str, Any] = field(default_factory=dict, metadata={"fields": lambda: EXTRA})
    form: str = "infonce"


@dataclass
class Opened:
    loss: Open = field(default_factory=Open)


def test_a_section_can_take_further_keys_which_are_checked_like_fields(tmp_path):
    config = load_config(Opened, overrides=["loss.temperature=2", "loss.kernel=hat"])
    assert config.loss.parameters == {"tau": 2.0, "kernel": "hat"}
    written = to_yaml(config)
    assert written.split() == ["loss:", "name:", "clip", "tau:", "2.0", "kernel:", "hat", "form:", "infonce"]
    file = tmp_path / "config.yaml"
    file.write_text(written)
    assert load_config(Opened, config=file) == config
    assert apply_overrides(config, ["loss.tau=null"]).loss.parameters == {"tau": None, "kernel": "hat"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss.tua=1", "loss.tua: unknown key; did you mean loss.tau?"),
        ("loss.parameters=1", "loss.parameters: unknown key"),
        ("loss.tau=soft", "loss.tau: expected float or null, got 'soft' (str)"),
        ("loss.kernel=bat", "loss.kernel: expected one of box, hat, got 'bat' (str)"),
    ],
)
def test_a_wrong_further_key_is_answered_like_a_wrong_field(override, said):
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        load_config(Opened, overrides=[override])
