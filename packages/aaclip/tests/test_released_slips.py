"""Every slip of the released code is one field: it can be switched on alone, and is then what that code computes."""

import math
from dataclasses import asdict

import pytest
import torch
from helpers.configs import leaves
from torch.nn.functional import normalize, softplus

from aaclip.config import Config, PromptConfig
from aaclip.data import Batch
from aaclip.models.backbone import load_backbone, make_model
from aaclip.models.maps import differences, probability_map
from aaclip.models.prompts import embed_classes, load_prompts
from aaclip.training.losses import orthogonal_loss, segmentation_loss
from aaclip.training.modules import ImageStage, TextStage
from clip_common.config import load_config

SLIPS = [
    "backbone.activation=gelu",
    "surgery.axis=batch",
    "adapters.kind=linear",
    "adapters.final_init=xavier",
    "heads.activation=none",
    "heads.detection=mean",
    "loss.classification_scale=1",
    "prompts.set=compact",
    "stages.text.levels_in_loss=last",
    "data.labelled=test",
    "score.image=official",
    "cross_attention.at_test=false",
    "cross_attention.context=batch",
    "cross_attention.padding=kept",
    "augment.rotation=30",
    "augment.rotation_p=0.5",
    "augment.crop=1",
    "augment.translation=0.15",
    "augment.flip_vertical=0.5",
    "augment.jitter=0.5",
    "augment.jitter_coins=each",
    "augment.fill=mean",
    "augment.resampling=nearest",
    "data.mode=few_shot",
    "data.drop_last=false",
    "trainer.seed=111",
]
SIZES = {"levels", "surgery.blocks", "adapters.text_blocks", "adapters.image_blocks"}
"""What `official` writes out and the defaults derive from the depth of a tower: the same at 24 blocks."""


def changed(*overrides, config=None):
    """Fields that differ from the defaults."""
    found = leaves(asdict(load_config(Config, config=config, overrides=overrides, package="aaclip")))
    return {key: value for key, value in found.items() if value != leaves(asdict(Config()))[key]}


def test_the_preset_is_its_slips_and_nothing_else():
    one_by_one = {}
    for slip in SLIPS:
        alone = changed(slip)
        assert list(alone) == [slip.split("=")[0]]  # alone: nothing else comes along
        one_by_one |= alone
    official = changed(config="official")
    assert {key: value for key, value in official.items() if key not in SIZES} == one_by_one


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("gelu", lambda x: x * (1 + math.erf(x / 2**0.5)) / 2), ("quick_gelu", lambda x: x / (1 + math.exp(-1.702 * x)))],
)
def test_the_activation_of_both_towers(clip_folder, activation, expected):
    small = [f"backbone.name=local-dir:{clip_folder}", "backbone.pretrained=null", "backbone.image_size=null"]
    config = load_config(Config, overrides=[*small, f"backbone.activation={activation}"])
    model = make_model(load_backbone(config.backbone), config)
    for trunk in (model.image_tower.trunk.visual, model.text_tower.trunk.text):
        found = trunk.transformer.resblocks[0].mlp.gelu(torch.tensor([-1.0, 0.5, 2.0]))
        assert found.tolist() == pytest.approx([expected(x) for x in (-1.0, 0.5, 2.0)], abs=1e-6)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    masks_BHW = torch.zeros(2, 32, 32)
    masks_BHW[1, 8:16, 8:16] = 1
    return Batch(
        images_B3HW=torch.randn(2, 3, 32, 32, generator=generator),
        masks_BHW=masks_BHW,
        masks_known_B=torch.tensor([True, True]),
        anomalous_B=torch.tensor([0, 1]),
        class_names=["mug", "mug"],
        indices_B=torch.arange(2),
        names=["a", "b"],
    )


def made(bundle, config, *overrides):
    config = load_config(Config, overrides=["prompts.set=compact", *overrides])
    torch.manual_seed(0)
    return make_model(bundle, config), config


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("levels", ["all", "last"])
def test_in_stage_1_the_last_level_overwrites_the_others(bundle, config, batch, levels):
    model, config = made(bundle, config, f"stages.text.levels_in_loss={levels}")
    prompts = load_prompts(PromptConfig(set="compact"))
    loss = TextStage(model, config.stages.text, config.loss, prompts=prompts).training_step(batch, 0)
    text_BD2 = embed_classes(model.encode_text, ["mug"], prompts).expand(2, -1, -1)
    each = []
    for patches_BLD in model.frozen_patches(batch.images_B3HW):
        p_BHW = probability_map(differences(patches_BLD, text_BD2), size=32)
        each.append(segmentation_loss(p_BHW, batch.masks_BHW))
    expected = (each[-1] if levels == "last" else sum(each)) + 0.1 * orthogonal_loss(text_BD2)
    assert len(each) == 4
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert sum(each).item() > 2 * each[-1].item()  # it makes a difference


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.parametrize("scale", [1, 100])
def test_in_stage_2_the_released_cross_entropy_is_of_bare_cosines(bundle, config, batch, scale):
    model, config = made(bundle, config, f"loss.classification_scale={scale}", "heads.detection=mean")
    text_D2 = normalize(torch.randn(24, 2, generator=torch.Generator().manual_seed(1)), dim=0)
    stage = ImageStage(model, config.stages.image, config.loss, classes={"mug": text_D2}, contexts={})
    loss = stage.training_step(batch, 0)
    features = model.features(batch.images_B3HW)
    segmentation = sum(
        segmentation_loss(probability_map(differences(patches, text_D2.expand(2, -1, -1)), size=32), batch.masks_BHW)
        for patches in features.levels
    )
    normal_B, abnormal_B = (scale * features.detection @ text_D2).unbind(dim=1)
    difference_B = abnormal_B - normal_B
    classification = (softplus(difference_B[0]) + softplus(-difference_B[1])) / 2
    assert loss.item() == pytest.approx((segmentation + classification).item(), rel=1e-5)
