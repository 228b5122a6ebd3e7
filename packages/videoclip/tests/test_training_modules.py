"""What the module trains, and what it leaves out."""

from itertools import product

import pytest
import torch

from clip_common.config import load_config
from videoclip.config import Config
from videoclip.data import Batch
from videoclip.models import VideoAttentionCLIP
from videoclip.training.modules import AlignmentModule

SMALL = ["model.clip_feature_dim=16", "model.clip_embed_dim=8", "model.map_guided_hidden_dim=8"]
GUIDED = "model.map_guided=true model.map_guided_type"
GUIDANCE = (
    "model.map_guided=false",
    "model.map_guided=true model.clip_backbone=2dcnn",
    *(f"{GUIDED}={kind}" for kind in ("spatiotemporal", "weighted_pool", "channel")),
    f"{GUIDED}=spatiotemporal model.map_guided_sigmoid_gate=true",
)
TOKENS = ("model.lambda_token=0", "model.lambda_token=1", "model.lambda_token=1 model.token_source=gated")
POOLS = ("model.align_pool=mean", "model.align_pool=mean model.align_tokens=gated")
PREDICTED = [
    f"{GUIDED}={kind} model.guide={guide}"
    for kind in ("spatiotemporal", "weighted_pool")
    for guide in ("predicted", "mixed")
]
COMBINATIONS = [
    f"{guidance} model.clip_classifier_source={source} loss.clip_weight={weight} {tokens}"
    for guidance, source, weight, tokens in product(GUIDANCE, ("video", "attn", "fusion"), (0, 1), TOKENS)
    # refused: the token loss of an encoder without tokens, or of one that nobody reads
    if tokens == TOKENS[0] or not ("2dcnn" in guidance or (source == "attn" and not weight))
]
COMBINATIONS += [
    f"{guidance} model.clip_classifier_source={source} {pool}"
    for guidance, source, pool in product(GUIDANCE, ("video", "attn", "fusion"), POOLS)
]
COMBINATIONS += [
    f"{guidance} loss.clip_weight={weight} model.lambda_guide={weighs}"
    for guidance, weight, weighs in product(PREDICTED, (0, 1), (0, 1))
]


def batch_of(size=4, *, frames=4, side=16):
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(size)
    return Batch(
        video_B3THW=torch.randint(0, 256, (size, 3, frames, side, side), generator=generator, dtype=torch.uint8),
        map_BCTHW=torch.rand(size, 1, frames, side, side, generator=generator),
        valid_B=torch.ones(size, dtype=torch.bool),
        guides_B=torch.ones(size, dtype=torch.bool),
        label_B=ids % 3,
        subject_B=ids,
        regions_B=ids,
        map_B=ids,
        clip_ids=tuple("abcd"[:size]),
    )


@pytest.mark.parametrize("overrides", COMBINATIONS)
def test_each_part_that_is_trained_has_a_gradient_and_the_others_are_frozen(overrides):
    """For the gradient of a parameter that is trained and gets none, DDP would wait."""
    config = load_config(Config, overrides=[*SMALL, *overrides.split()])
    module, batch = AlignmentModule(VideoAttentionCLIP(config.model), config), batch_of()
    output = module.forward_batch(batch, align=module.aligns)
    ids = {"label_B": batch.label_B, "subject_B": batch.subject_B, "regions_B": batch.regions_B}
    found = module.loss(output, map_BCTHW=batch.map_BCTHW, scale=module.model.logit_scale(), **ids)
    found.total.backward()
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert any(name.startswith("model.classifier") for name in trained)
