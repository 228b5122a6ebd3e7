"""A vision transformer of open_clip as a CLIPVisionModel: the same numbers, or a refusal."""

import open_clip
import pytest
import torch

from clip_common.backbones import BackboneError, load_clip
from clip_common.backbones.clip_conversion import convert_clip_vision
from clip_common.backbones.open_clip_trunks import OpenClipVision


def make_trunk(*, quick_gelu: bool = False, **vision: object) -> OpenClipVision:
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CustomTextCLIP(24, sizes | vision, text, quick_gelu=quick_gelu)
    return OpenClipVision(model.visual.eval())


def assert_same(trunk: OpenClipVision, size: int) -> None:
    images = torch.randn(2, 3, size, size)
    depth = len(trunk.blocks)
    with torch.no_grad():
        ours = trunk(images, (1, depth))
        theirs = convert_clip_vision(trunk)(pixel_values=images, output_hidden_states=True)
    pooled = theirs.pooler_output @ trunk.visual.proj
    torch.testing.assert_close(pooled, ours.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.hidden_states[1], ours.layers[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.last_hidden_state, ours.layers[depth], rtol=1e-5, atol=1e-5)
    patches = trunk.norm(theirs.last_hidden_state[:, 1:])
    torch.testing.assert_close(patches, ours.patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_random_weights_give_the_same_tokens_and_embeddings(quick_gelu: bool) -> None:
    assert_same(make_trunk(quick_gelu=quick_gelu), 32)


def test_the_shipped_model_converts() -> None:
    trunk = load_clip("tiny").image_tower.trunk
    assert isinstance(trunk, OpenClipVision)
    assert_same(trunk, 112)


@pytest.mark.parametrize(
    ("vision", "says"),
    [
        ({"ls_init_value": 0.1}, "layer scales"),
        ({"no_ln_pre": True}, "no layer norm before its blocks"),
        ({"pool_type": "avg"}, "no class token in its pooling"),
        ({"act_kwargs": {"approximate": "tanh"}}, "another activation"),
    ],
)
def test_parts_without_counterpart_are_refused(vision: dict[str, object], says: str) -> None:
    with pytest.raises(BackboneError, match=says) as caught:
        convert_clip_vision(make_trunk(**vision))
    assert "\n" not in str(caught.value)
