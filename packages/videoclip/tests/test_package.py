from importlib.metadata import version

import videoclip


def test_the_module_and_the_distribution_agree_on_the_version():
    assert videoclip.__version__ == version("videoclip")
