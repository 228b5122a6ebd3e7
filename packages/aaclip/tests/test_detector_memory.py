"""Remembered normal images: distances by hand, a normal patch adds nothing on average, saved and found again."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from aaclip.detector.calibration import Threshold
from aaclip.detector.detector import Detector
from aaclip.detector.memory import WEIGHT, Memory, measure_surprise


def unit(*rows: list[float]) -> torch.Tensor:
    return normalize(torch.tensor(rows), dim=-1)


def test_surprise_is_the_distance_to_the_nearest_beyond_the_usual_one():
    """One patch along x, its mirror image along y: each is 1 from the other, which is the usual distance."""
    memory = Memory.from_patches([unit([1.0, 0, 0])[None]], [unit([0, 1.0, 0])[None]])
    assert memory.images == 1
    assert memory.levels[0].usual.item() == pytest.approx(1)
    looked_at = [unit([0, 0, 1.0])[None], unit([1.0, 0, 0])[None], unit([1.0, 1.0, 0])[None]]
    found = [measure_surprise([one], memory.levels)[0].item() for one in looked_at]
    assert found == pytest.approx([0, -WEIGHT, -(0.5**0.5) * WEIGHT], abs=1e-5)


@pytest.mark.parametrize("part", [1, 7, 1024])
def test_equals_a_loop_over_patches(monkeypatch, part):
    monkeypatch.setattr("aaclip.detector.memory.PART", part)
    torch.manual_seed(0)
    plain, mirror, asked = (normalize(torch.randn(count, 4, 8), dim=-1) for count in (3, 3, 2))
    memory = Memory.from_patches([plain], [mirror])
    entries = [*plain, *mirror]
    usual = []
    for number, own in enumerate(entries):
        others = [patch for other, entry in enumerate(entries) if other != number for patch in entry]
        usual += [min(1 - float(patch @ other) for other in others) for patch in own]
    expected = [
        [min(1 - float(patch @ other) for entry in entries for other in entry) - np.mean(usual) for patch in image]
        for image in asked
    ]
    found = measure_surprise([asked], memory.levels)[0].flatten(1).numpy()
    np.testing.assert_allclose(found, WEIGHT * np.array(expected), atol=1e-4)


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (48, 48, 3), dtype=np.uint8)) for _ in range(count)]


def test_what_is_remembered_surprises_less(detector):
    known, *others = pictures(6)
    before = detector.predict(known, name="mug").score
    detector.remember([known, *others[:2]], name="mug")
    of_known, of_other = (detector.predict(one, name="mug").heatmap_HW.mean() for one in (known, others[-1]))
    assert detector.predict(known, name="mug").score < before
    assert of_known < of_other
    assert detector.memory_of("lamp") is None  # another thing's scores are as they were


def test_alone_or_in_a_batch(detector):
    detector.remember(pictures(2), name="mug")
    alone = [detector.predict(one, name="mug").score for one in pictures(5)]
    assert [one.score for one in detector.predict(pictures(5), name="mug")] == pytest.approx(alone, abs=1e-6)


def test_saved_and_found_again(detector, tmp_path):
    detector.remember(pictures(2), name="mug")
    detector.remember(pictures(3), name="lámpara, roja")
    score = detector.predict(pictures(4)[-1], name="lámpara, roja").score
    again = Detector.from_pretrained(detector.save_pretrained(tmp_path / "saved"))
    assert {name: memory.images for name, memory in again.memories.items()} == {"mug": 2, "lámpara, roja": 3}
    assert again.predict(pictures(4)[-1], name="lámpara, roja").score == pytest.approx(score, abs=2e-3)  # 16 bits


def test_a_threshold_of_other_scores_is_forgotten(detector):
    detector.threshold = Threshold(0.5, method="given")
    detector.remember(pictures(1), name="mug")
    assert detector.threshold is None


def test_nothing_to_remember(detector):
    with pytest.raises(ValueError, match="no normal picture of mug to remember"):
        detector.remember([], name="mug")
