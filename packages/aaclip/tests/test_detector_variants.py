"""Every variant of the model through a detector's files and its exported forms: the same scores."""

import numpy as np
import pytest
import torch

from aaclip.config import Config
from aaclip.detector import export
from aaclip.detector.calibration import Logistic
from aaclip.detector.detector import Detector
from aaclip.models.backbone import load_backbone, make_model
from clip_common.backbones import load_clip
from clip_common.config import apply_overrides, load_config
from clip_common.images import find_images

VARIANTS = [
    "adapters.kind=lora",
    "adapters.kind=conv",
    "adapters.placement=last",
    "adapters.placement=spread",
    "adapters.position=parallel",
    "adapters.norm=none",
    "adapters.norm=layer",
    "adapters.norm=learned",
    "adapters.kind=conv;adapters.placement=last;adapters.position=parallel;adapters.norm=learned",
    "heads.detection=mean",
    "heads.detection=attention",
    "heads.detection=levels",
    "prompts.learned_tokens=4",
]
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""Two blocks: exporting takes time by the operation."""


def make_detector(bundle, config):
    """Trained weights, for all that a test can tell."""
    model = make_model(bundle, config)
    torch.manual_seed(1)
    with torch.no_grad():
        parts = (model.text_adapter.layers, model.image_adapter.layers, model.text_adapter.tokens)
        for part in (*parts, model.image_adapter.query):
            for parameter in () if part is None else part.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
    return Detector(model, config, score=Logistic(a=20.0, b=0.3, c=0.1, images=8), device="cpu")


def score(detector, files):
    return [one.score for one in detector.predict(files, name="mug")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_detector_scores_as_before(config, parts, tmp_path, variant):
    config = apply_overrides(config, variant.split(";"))
    detector = make_detector(load_backbone(config.backbone), config)
    files = find_images([parts / "mug" / "test"])[:3]
    expected = score(detector, files)
    found = score(Detector.from_pretrained(detector.save_pretrained(tmp_path / "saved")), files)
    assert found == expected


LORA, CONV, LAYER = VARIANTS[0], VARIANTS[8], "adapters.norm=layer;adapters.placement=spread"
MEAN, ATTENTION, LEVELS, TOKENS = VARIANTS[9:]


@pytest.mark.parametrize(
    ("variant", "format", "int8"),
    [
        *((variant, "onnx", False) for variant in (LORA, CONV, LAYER)),
        *((variant, "onnx", True) for variant in (LORA, CONV)),
        *((variant, "torch", False) for variant in (LORA, CONV, "adapters.norm=none")),
    ],
)
def test_an_exported_variant_scores_as_aaclip(parts, tmp_path, variant, format, int8):
    overrides = ["prompts.set=compact", "adapters.image_blocks=1", *variant.split(";")]
    detector = make_detector(
        load_clip("two-blocks", pretrained="random", model_config=ARCHITECTURE, seed=0),
        load_config(Config, overrides=overrides),
    )
    file = tmp_path / f"nut{export.SUFFIXES[format]}"
    files = find_images([parts / "mug" / "test"])[:4]
    written = export.export_detector(detector, file, names=["mug"], images=files, format=format, int8=int8)
    assert written.parity.images == 4
    with detector.model.image_adapter.layers.left_out():
        without = score(detector, files)
    assert np.abs(np.subtract(without, score(detector, files))).max() > 10 * export.TOLERANCE


@pytest.mark.parametrize(
    ("variant", "format", "int8"),
    [
        *((variant, "onnx", False) for variant in (MEAN, ATTENTION, LEVELS, TOKENS)),
        (ATTENTION, "onnx", True),
        *((variant, "torch", False) for variant in (ATTENTION, LEVELS)),
    ],
)
def test_an_exported_image_as_a_whole_scores_as_aaclip(parts, tmp_path, variant, format, int8):
    """The classification alone counts, so that the scores are those of the head or of the texts."""
    clip = load_clip("two-blocks", pretrained="random", model_config=ARCHITECTURE, seed=0)
    detector = make_detector(clip, load_config(Config, overrides=["prompts.set=compact", variant]))
    detector.score = Logistic(a=2.0, b=0.0, c=0.0, images=8)
    file = tmp_path / f"nut{export.SUFFIXES[format]}"
    files = find_images([parts / "mug" / "test"])[:4]
    written = export.export_detector(detector, file, names=["mug"], images=files, format=format, int8=int8)
    assert written.parity.images == 4
    assert all(0.05 < one < 0.95 for one in score(detector, files))
