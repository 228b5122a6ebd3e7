"""The models on a GPU: the outputs of the CPU."""

import pytest
import torch

from videoclip.config import ModelConfig
from videoclip.models import VideoAttentionCLIP


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("backbone", ["3dcnn", "2dcnn", "cnn_lstm", "r3d_18"])
def test_outputs_are_those_of_the_cpu(backbone, exact_products):
    torch.manual_seed(0)
    config = ModelConfig(clip_backbone=backbone, clip_feature_dim=16, clip_embed_dim=8, map_guided=True)
    model = VideoAttentionCLIP(config).eval()
    video, maps = torch.rand(2, 3, 4, 32, 32), torch.rand(2, 1, 4, 32, 32)
    with torch.no_grad():
        expected = model(video, maps).logits
        found = model.cuda()(video.cuda(), maps.cuda()).logits
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
