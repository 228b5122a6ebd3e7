"""A detector on a GPU: the maps and scores of the CPU."""

import copy

import pytest
import torch

from aaclip.detector.detector import Detector


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_maps_and_scores_are_those_of_the_cpu(detector, exact_products):
    images_B3SS = torch.randn(3, 3, detector.size, detector.size, generator=torch.Generator().manual_seed(0))
    text_BD2 = detector.class_embedding("mug").expand(3, -1, -1)
    expected = detector.scores(images_B3SS, text_BD2)
    moved = Detector(copy.deepcopy(detector.model).cuda(), detector.config, score=detector.score)
    found = moved.scores(images_B3SS, text_BD2)
    assert found.maps_BSS.device.type == "cuda"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3)
