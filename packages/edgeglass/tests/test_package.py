from importlib.metadata import version

import edgeglass


def test_the_module_and_the_distribution_agree_on_the_version():
    assert edgeglass.__version__ == version("edgeglass")
