"""A detector on a GPU: the maps, scores, memories and verdicts of the CPU."""

import pytest
import torch
from PIL import Image

from aaclip.detector.detector import Detector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture
def both(saved):
    """The same detector on the CPU and on the GPU, with one remembered picture."""
    found = tuple(Detector.from_pretrained(saved, device=device) for device in ("cpu", "cuda"))
    for detector in found:
        detector.remember([Image.linear_gradient("L").convert("RGB")], name="mug")
    return found


def test_maps_and_scores_are_those_of_the_cpu(both, exact_products):
    images_B3SS = torch.randn(3, 3, both[0].size, both[0].size, generator=torch.Generator().manual_seed(0))
    expected, found = (
        one.scores(images_B3SS, one.class_embedding("mug").expand(3, -1, -1), memory=one.memory_of("mug"))
        for one in both
    )
    assert found.maps_BSS.device.type == "cuda"
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-3)


def test_files_new_names_and_what_is_saved_are_those_of_the_cpu(both, exact_products, photos, tmp_path):
    for name in ("mug", "a lamp"):  # the text tower is loaded for the second
        expected, found = ([one.score for one in detector.predict(photos, name=name)] for detector in both)
        assert found == pytest.approx(expected, abs=1e-3)
    assert all(weight.is_cuda for weight in both[1].model.text_tower.parameters())
    again = Detector.from_pretrained(both[1].save_pretrained(tmp_path / "again"), device="cpu")
    for name, text_D2 in both[0].classes.items():
        torch.testing.assert_close(again.classes[name], text_D2, rtol=1e-3, atol=1e-3)


def test_a_gpu_is_used_without_being_asked_for(saved):
    assert Detector.from_pretrained(saved).device.type == "cuda"
