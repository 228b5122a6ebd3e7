"""The bootstrap over runs, against cases worked out by hand."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from clip_common.metrics import image_text_retrieval, paired_bootstrap
from clip_common.metrics.bootstrap import resample_runs

IMAGES = 12
RIGHT = image_text_retrieval(torch.eye(IMAGES), torch.eye(IMAGES), torch.arange(IMAGES))
WRONG = image_text_retrieval(torch.eye(IMAGES), torch.eye(IMAGES).roll(1, 0), torch.arange(IMAGES))


def test_runs_that_differ_widen_the_interval_as_drawing_two_of_two_does():
    # every query is right, or every query wrong: images add no spread. One run is ahead by 1, the other by 0, so the
    # mean of two drawn runs is 0, 1/2 or 1 with probability 1/4, 1/2 and 1/4, and p = 2 · P(0)
    paired = paired_bootstrap([RIGHT, WRONG], [WRONG, WRONG], key="t2i/R@1", samples=4000)
    assert (paired.difference, paired.low, paired.high) == (0.5, 0.0, 1.0)
    assert paired.p == pytest.approx(0.5, abs=0.04)


def test_runs_that_agree_leave_the_interval_of_one():
    torch.manual_seed(0)
    some = image_text_retrieval(torch.eye(IMAGES), torch.randn(IMAGES, IMAGES), torch.arange(IMAGES))
    three, one = paired_bootstrap([some] * 3, [RIGHT] * 3), paired_bootstrap(some, RIGHT)
    assert astuple(three) == pytest.approx(astuple(one))


def test_the_spread_resample_runs_is_that_of_the_formula():
    values_R = np.array([0.0, 3.0, 6.0])
    mean_S = resample_runs(np.repeat(values_R[:, None], 20000, axis=1), seed=0)
    assert mean_S.mean() == pytest.approx(3.0, abs=0.05)
    assert mean_S.var() == pytest.approx(values_R.var() / 3, rel=0.05)  # 6 / 3: 2/3 of the sample variance 9 over 3


def test_one_run_is_returned_as_it_is():
    values_1S = np.arange(5.0)[None]
    assert resample_runs(values_1S, seed=0).tolist() == values_1S[0].tolist()


@pytest.mark.parametrize(("ours", "theirs"), [([RIGHT], [WRONG, WRONG]), ([], [])])
def test_runs_are_paired(ours, theirs):
    with pytest.raises(ValueError, match=f"pairs run by run; got {len(ours)} and {len(theirs)} runs"):
        paired_bootstrap(ours, theirs)
