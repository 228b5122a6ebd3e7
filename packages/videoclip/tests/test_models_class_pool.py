"""What the classifier sees: cells of a grid instead of one mean, and changes instead of frames."""

import pytest
import torch
from torch.nn import functional as F

from videoclip.config import ConfigError, ModelConfig
from videoclip.models import VideoAttentionCLIP
from videoclip.models.alignment import GRID
from videoclip.models.clip_align import find_changes
from videoclip.models.encoders import Simple2DEncoder, Simple3DEncoder
from videoclip.models.pooling import MapGuidedVideoEncoder, resize_to_grid

SMALL = {"clip_feature_dim": 16, "clip_embed_dim": 8, "map_guided_hidden_dim": 8}


def guided(**knobs):
    torch.manual_seed(0)
    return MapGuidedVideoEncoder(ModelConfig(**SMALL | {"map_guided": True, "class_pool": "grid"} | knobs)).eval()


def tokens_of(batch=2):
    return torch.rand(batch, 64, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def cells(tokens):
    return F.adaptive_avg_pool3d(tokens, GRID).flatten(2).transpose(1, 2).flatten(1)


def test_changes_by_hand():
    video = torch.tensor([1.0, 4.0, 2.0]).view(1, 1, 3, 1, 1)
    assert find_changes(video).flatten().tolist() == [3.0, -2.0, -2.0]


def test_a_still_video_has_no_changes():
    """Who stands there, and before which wall, is the same in every frame."""
    torch.manual_seed(0)
    model = VideoAttentionCLIP(ModelConfig(**SMALL, video_input="changes")).eval()
    still = torch.randn(2, 3, 1, 32, 32).expand(2, 3, 8, 32, 32)
    logits = model(still, torch.rand(2, 1, 8, 32, 32)).logits
    torch.testing.assert_close(logits[0], logits[1])


@pytest.mark.parametrize("kind", [Simple3DEncoder, Simple2DEncoder])
def test_the_grid_keeps_places_and_the_mean_does_not(kind):
    torch.manual_seed(0)
    here = torch.zeros(1, 64, 4, 8, 8)
    here[..., :2, :2] = 1
    there = here.flip(-1)
    for on_grid in (True, False):
        encoder = kind(3, 16, on_grid=on_grid).eval()
        same = torch.allclose(encoder.pooled(here), encoder.pooled(there))
        assert same is not on_grid


@pytest.mark.parametrize("kind", ["spatiotemporal", "weighted_pool"])
def test_guided_cells_are_the_means_of_guided_tokens(kind):
    encoder, tokens = guided(map_guided_type=kind), tokens_of()
    maps = torch.rand(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    found = encoder.pool(tokens, maps, valid_B=torch.tensor([True, True])).feature
    gate, _ = resize_to_grid(maps, tokens.shape[2:])
    alpha = 0 if encoder.alpha is None else encoder.alpha
    weights = gate * (1 + alpha * gate) / gate.mean(dim=(2, 3, 4), keepdim=True)
    torch.testing.assert_close(found, encoder.encoder.head(cells(tokens * weights)))


def test_channels_are_gated_in_every_cell():
    encoder, tokens, maps = guided(map_guided_type="channel"), tokens_of(), torch.rand(2, 1, 8, 16, 16)
    found = encoder.pool(tokens, maps, valid_B=torch.tensor([True, True]))
    torch.testing.assert_close(found.feature, encoder.encoder.head(cells(tokens * found.gain)))


@pytest.mark.parametrize("kind", ["spatiotemporal", "weighted_pool", "channel"])
def test_without_a_map_the_feature_is_that_of_all_tokens(kind):
    encoder, tokens = guided(map_guided_type=kind), tokens_of()
    found = encoder.pool(tokens, torch.rand(2, 1, 8, 16, 16), valid_B=torch.zeros(2, dtype=torch.bool)).feature
    torch.testing.assert_close(found, encoder.pooled(tokens))


def test_the_mean_of_the_published_alignment_is_refused():
    with pytest.raises(ConfigError, match=r"class_pool=grid needs model.align_pool=grid: mean aligns"):
        ModelConfig(class_pool="grid", align_pool="mean")
