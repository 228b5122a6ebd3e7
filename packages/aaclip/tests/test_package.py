from importlib.metadata import version

import aaclip


def test_the_module_and_the_distribution_agree_on_the_version():
    assert aaclip.__version__ == version("aaclip")
