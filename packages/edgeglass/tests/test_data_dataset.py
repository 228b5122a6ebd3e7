"""The caption of a sample in an epoch."""

from collections import Counter

from edgeglass.data import Sample, choose_caption


def test_the_caption_is_a_function_of_seed_epoch_and_index():
    sample = Sample(0, "a", captions=("one", "two", "three"))
    chosen = [choose_caption(sample, seed=1, epoch=epoch, index=index) for epoch in range(30) for index in range(30)]
    assert chosen == [
        choose_caption(sample, seed=1, epoch=epoch, index=index) for epoch in range(30) for index in range(30)
    ]
    assert set(chosen) == {0, 1, 2}
    assert all(270 < count < 330 for count in Counter(chosen).values())  # 300 each, within about two deviations
    assert chosen != [
        choose_caption(sample, seed=2, epoch=epoch, index=index) for epoch in range(30) for index in range(30)
    ]


def test_one_caption_and_none():
    assert choose_caption(Sample(0, "a", captions=("one",)), seed=1, epoch=2, index=3) == 0
    assert choose_caption(Sample(0, "a"), seed=1, epoch=2, index=3) is None
