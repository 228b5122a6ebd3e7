"""The scorer alone: the numbers of the steps it replaces, and a trace that needs no Python of ours."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from aaclip.detector.memory import Level, Memory
from aaclip.detector.scorer import Scorer, Scores

EPSILON = float(np.finfo(np.float64).eps)


@pytest.fixture
def images_B3SS() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def text_BD2(detector) -> torch.Tensor:
    return detector.class_embedding("mug").expand(3, -1, -1).clone()


def remembered(detector, images_B3SS) -> list[Level]:
    with torch.inference_mode():
        levels = detector.model.features(images_B3SS).levels
        return Memory.from_patches(levels, [level.flip(1) for level in levels]).levels


def test_the_logistic_and_the_sigmoid_are_those_of_numpy_and_scipy(detector, images_B3SS, text_BD2):
    """The logits to the last bit; the scores to two steps of float64, far below the 1e-5 above which a threshold is."""
    scores = detector.scores(images_B3SS, text_BD2)
    weights = detector.score
    cls, top = (values.numpy().astype(np.float64) for values in (scores.classification_B, scores.top_B))
    logits = weights.a * cls + weights.b * top + weights.c
    np.testing.assert_array_equal(scores.logits_B.numpy(), logits)
    np.testing.assert_allclose(scores.scores_B.numpy(), expit(logits), rtol=2 * EPSILON, atol=0)


def test_the_sigmoid_is_scipys_from_0_to_1():
    logits = np.linspace(-750, 750, 100_001)
    np.testing.assert_allclose(torch.from_numpy(logits).sigmoid().numpy(), expit(logits), rtol=4 * EPSILON, atol=1e-300)


def test_some_images_of_a_batch(detector, images_B3SS, text_BD2):
    scores = detector.scores(images_B3SS, text_BD2)
    chosen = scores.select(torch.tensor([2, 0]))
    for values, own in zip(scores, chosen, strict=True):
        assert torch.equal(own, values[[2, 0]])


@pytest.mark.parametrize("with_memory", [False, True])
def test_torch_export_traces_it_and_the_trace_gives_the_same(detector, images_B3SS, text_BD2, with_memory):
    memory = remembered(detector, images_B3SS[:2]) if with_memory else []
    batch = {0: torch.export.Dim("batch")}
    sizes = {"images_B3SS": batch, "text_BD2": batch, "memory": [Level(None, None) for _ in memory]}
    with torch.no_grad():
        program = torch.export.export(detector.scorer, (images_B3SS, text_BD2, memory), dynamic_shapes=sizes)
    exported = program.module()
    for count in (1, 3, 5):
        other_B3SS = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        text = text_BD2[:1].expand(count, -1, -1)
        with torch.no_grad():
            expected = detector.scorer(other_B3SS, text, memory)
            found = Scores(*exported(other_B3SS, text, memory))
        for own, values in zip(found, expected, strict=True):
            torch.testing.assert_close(own, values, atol=1e-5, rtol=1e-5)


def test_it_traces_on_the_clip_that_the_package_ships():
    from aaclip.detector.detector import Detector

    detector = Detector.plain("tiny")
    image_13SS = torch.rand(1, 3, detector.size, detector.size)
    text_1D2 = detector.class_embedding("mug")[None]
    memory = remembered(detector, image_13SS)
    assert isinstance(detector.scorer, Scorer)
    with torch.no_grad():
        exported = torch.export.export(detector.scorer, (image_13SS, text_1D2, memory)).module()
        found, expected = exported(image_13SS, text_1D2, memory), detector.scorer(image_13SS, text_1D2, memory)
    torch.testing.assert_close(found[0], expected.maps_BSS, atol=1e-4, rtol=1e-4)
