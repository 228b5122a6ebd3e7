"""Text at its real length: the same embeddings and gradients as at full length, and only where that is exact."""

import pytest
import torch

from clip_common.backbones import load_clip
from clip_common.backbones.open_clip_trunks import OpenClipText, WholeText

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
CAPTIONS = ["a dog", "a man in a red shirt rides a horse along the beach at sunset", "", "two cats"]
LONG = " ".join(["word"] * 90)


def loaded(**text):
    return load_clip("small", model_config={"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT | text})


def whole(trunk: OpenClipText, tokens: torch.Tensor) -> torch.Tensor:
    """open_clip's own forward, at full length."""
    return trunk.text(tokens)


@pytest.mark.parametrize("captions", [CAPTIONS, [LONG, "a dog"], ["", ""], ["a dog in the snow"] * 64])
def test_the_real_length_makes_no_difference_forward(captions):
    bundle = loaded()
    tokens = bundle.tokenizer(captions)
    with torch.no_grad():
        torch.testing.assert_close(bundle.text_tower(tokens), whole(bundle.text_tower.trunk, tokens), rtol=0, atol=3e-6)


def test_the_real_length_moves_no_more_than_the_last_bits_on_one_thread():
    bundle, threads = loaded(), torch.get_num_threads()
    tokens = bundle.tokenizer(CAPTIONS)
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            ours, expected = bundle.text_tower(tokens), whole(bundle.text_tower.trunk, tokens)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    finally:
        torch.set_num_threads(threads)


def test_gradients_match_those_at_full_length():
    bundle = loaded()
    tokens, trunk = bundle.tokenizer(CAPTIONS), bundle.text_tower.trunk
    parameters = dict(trunk.named_parameters())
    direction = torch.randn(len(CAPTIONS), 32)
    ours = torch.autograd.grad((bundle.text_tower(tokens) * direction).sum(), list(parameters.values()))
    theirs = torch.autograd.grad((whole(trunk, tokens) * direction).sum(), list(parameters.values()))
    for name, one, other in zip(parameters, ours, theirs, strict=True):
        assert (one - other).abs().max() <= 3e-6 * other.abs().max(), name


def test_the_forward_is_cut_to_the_longest_text_of_the_batch():
    bundle, lengths = loaded(), []
    transformer = bundle.text_tower.trunk.text.transformer
    transformer.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    for captions in (["a dog"], CAPTIONS, [LONG]):
        bundle.text_tower(bundle.tokenizer(captions))
    assert lengths == [16, 16, 77]


def test_a_tower_that_pools_at_an_eos_id_is_cut_there():
    bundle = loaded(pool_type="eos", eos_id=49407)
    assert isinstance(bundle.text_tower.trunk, OpenClipText)
    tokens = bundle.tokenizer(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(bundle.text_tower(tokens), whole(bundle.text_tower.trunk, tokens), rtol=0, atol=3e-6)


def test_a_batch_with_a_text_without_eos_id_is_pooled_as_open_clip_pools_it():
    bundle = loaded(pool_type="eos", eos_id=49405)
    tokens = bundle.tokenizer(CAPTIONS)
    tokens[1, 9] = 49405
    with torch.no_grad():
        torch.testing.assert_close(bundle.text_tower(tokens), whole(bundle.text_tower.trunk, tokens), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},  # SigLIP
        {"embed_cls": True},  # CoCa
        {"pool_type": "last"},
    ],
    ids=["siglip", "coca", "last"],
)
def test_towers_that_see_every_position_run_whole(text):
    bundle, lengths = loaded(**text), []
    trunk = bundle.text_tower.trunk
    assert isinstance(trunk, WholeText)
    trunk.text.transformer.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    tokens = bundle.tokenizer(["a dog"])
    torch.testing.assert_close(bundle.text_tower(tokens), trunk.text(tokens))
    assert lengths[0] >= 77


def test_the_projection_may_have_a_bias_or_be_absent():
    for text in ({"proj_bias": True}, {"proj_type": "none"}):
        bundle = loaded(**text)
        tokens = bundle.tokenizer(CAPTIONS)
        with torch.no_grad():
            expected = whole(bundle.text_tower.trunk, tokens)
            torch.testing.assert_close(bundle.text_tower(tokens), expected, rtol=0, atol=3e-6)
