import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import edgeglass


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_module_and_the_distribution_agree_on_the_version():
    assert edgeglass.__version__ == version("edgeglass")


def test_importing_the_package_imports_no_heavy_library():
    printed = run("-c", "import edgeglass, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert not {"torch", "numpy", "lightning", "omegaconf", "transformers", "PIL"} & set(json.loads(printed))


@pytest.mark.parametrize("name", edgeglass.__all__)
def test_every_public_name_resolves(name):
    found = getattr(edgeglass, name)
    assert found.__name__ == ("train" if name == "train_alignment" else name)
    assert found.__module__.startswith("edgeglass.")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'edgeglass' has no attribute 'Aligned'"):
        edgeglass.Aligned  # noqa: B018


def test_the_package_runs_as_a_module():
    assert "width: 64" in run("-m", "edgeglass", "config", "--config", "tiny", "mrl.width=64", "mrl.dims=[8]")
