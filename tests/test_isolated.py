"""Each package's tests pass with only that package and what it declares: uv does not stop a sibling import."""

import pytest
from helpers.environments import ROOT, run, uv


@pytest.mark.slow
@pytest.mark.parametrize("package", ["clip-common", "clipse", "aaclip", "edgeglass", "videoclip"])
def test_a_packages_tests_pass_with_only_what_it_declares(package):
    folder = f"packages/{package.removeprefix('clip-')}/tests"
    isolated = [uv(), "run", "--isolated", "--exact", "--package", package, "--group", "test"]
    run(*isolated, "pytest", "-q", folder, cwd=ROOT)
