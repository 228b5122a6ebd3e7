"""What is aligned: places kept by the grid, and embeddings that no map has touched."""

import pytest
import torch
from torch.nn import functional as F

from videoclip.config import ConfigError, ModelConfig
from videoclip.models import VideoAttentionCLIP
from videoclip.models.alignment import GRID, pool_on_grid

SMALL = {"clip_feature_dim": 16, "clip_embed_dim": 8, "map_guided_hidden_dim": 8}
GUIDES = [
    {"map_guided_type": "spatiotemporal"},
    {"map_guided_type": "spatiotemporal", "map_guided_sigmoid_gate": True},
    {"map_guided_type": "weighted_pool"},
    {"map_guided_type": "channel"},
    {"clip_backbone": "2dcnn"},
]


def model_of(**knobs):
    torch.manual_seed(0)
    return VideoAttentionCLIP(ModelConfig(**SMALL | knobs)).eval()


def clips_of(batch=4, *, size=32):
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(batch, channels, 8, size, size, generator=generator) for channels in (3, 1))


@pytest.mark.parametrize("size", [(4, 32, 32), (2, 4, 4), (1, 7, 5), (3, 9, 12)])
def test_the_grid_is_torchs_adaptive_pooling(size):
    tokens = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    ours = pool_on_grid(tokens)
    theirs = F.adaptive_avg_pool3d(tokens, GRID).flatten(2).transpose(1, 2).flatten(1)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad((x * weight).sum(), tokens)[0] for x in (ours, theirs)))


def test_by_hand():
    """Two tokens of one value in time, 1 and 3: the first half of the cells reads 1, the second 3."""
    tokens = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1, 1)
    assert pool_on_grid(tokens).tolist() == [[1.0] * 16 + [3.0] * 16]


def test_a_map_that_moves_changes_what_the_grid_sees_and_not_the_mean():
    """The fault of the published pooling: moved by an eighth of the picture, a map looks the same to it."""
    here = torch.zeros(1, 1, 8, 64, 64)
    here[..., 24:32, 24:32] = 1
    there = here.roll(8, dims=-1)
    changes = {}
    for pool in ("grid", "mean"):
        encoder = model_of(align_pool=pool).attn_encoder
        read = pool_on_grid if pool == "grid" else (lambda tokens, encoder=encoder: encoder.pooled(tokens))
        one, other = (read(encoder.tokens(maps)) for maps in (here, there))
        changes[pool] = ((one - other).norm() / one.norm()).item()
    assert changes["mean"] < 1e-3
    assert changes["grid"] > 0.05


def test_clips_start_out_less_alike_with_the_grids_norm():
    """Without it, tokens that are never negative leave every clip near every other, and training stays at ln B."""
    model, (video, maps) = model_of(), clips_of(16)
    alike = {}
    for norm in (True, False):
        if not norm:
            for projection in (model.video_projection, model.attn_projection):
                projection[0] = torch.nn.Identity()
        seen = model(video, maps)
        for name, embed in {"video": seen.video_embed, "map": seen.attn_embed}.items():
            alike[name, norm] = (embed @ embed.T).triu(1).sum().item() / (16 * 15 / 2)
    assert alike["video", True] < alike["video", False]
    assert alike["map", True] < alike["map", False]


@pytest.mark.parametrize("pool", ["grid", "mean"])
@pytest.mark.parametrize("guide", GUIDES)
def test_the_embedding_of_a_video_does_not_hold_its_map(guide, pool):
    model, (video, maps) = model_of(map_guided=True, align_pool=pool, **guide), clips_of()
    seen, hidden, other = (
        model(video, maps),
        model(video, maps, guides_B=torch.zeros(4, dtype=torch.bool)),
        model(video, maps.roll(1, dims=0)),
    )
    assert torch.equal(seen.video_embed, hidden.video_embed)
    assert torch.equal(seen.video_embed, other.video_embed)
    assert (seen.logits - hidden.logits).abs().max() > 1e-6  # but it guides the classifier
    assert torch.equal(seen.attn_embed, hidden.attn_embed)  # and is still there to be found
    assert not hidden.guided.any()
    assert hidden.map_valid.all()


@pytest.mark.parametrize("guide", GUIDES)
def test_gated_tokens_hold_it_as_published(guide):
    model, (video, maps) = model_of(map_guided=True, align_pool="mean", align_tokens="gated", **guide), clips_of()
    seen = model(video, maps)
    assert (seen.video_embed - model(video, maps.roll(1, dims=0)).video_embed).abs().max() > 1e-6
    torch.testing.assert_close(seen.video_embed, F.normalize(model.video_projection(seen.video_feat), dim=1))


def test_gated_tokens_on_a_grid_are_refused():
    with pytest.raises(ConfigError, match=r"align_tokens=gated pools as published: set model.align_pool=mean"):
        ModelConfig(align_tokens="gated")
