"""Loading a CLIP: by name, from folders and files; towers against open_clip's own."""

import subprocess
import sys

import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file

from clip_common.backbones import BackboneError, load_clip, save_bundle

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def config(vision=None, text=None, **top):
    return (
        CONFIG
        | top
        | {"vision_cfg": CONFIG["vision_cfg"] | (vision or {}), "text_cfg": CONFIG["text_cfg"] | (text or {})}
    )


def theirs(bundle) -> CustomTextCLIP:
    """open_clip's own model with the weights of a bundle."""
    model = CustomTextCLIP(**{key: value for key, value in bundle.spec.config.items() if key != "custom_text"})
    towers = bundle.image_tower.trunk.state_dict() | bundle.text_tower.trunk.state_dict()
    model.load_state_dict(towers | {"logit_scale": torch.tensor(bundle.logit_scale)})
    return model.eval()


@pytest.fixture(scope="module")
def small():
    return load_clip("small", model_config=CONFIG)


def test_importing_the_package_imports_no_heavy_library():
    heavy = {"open_clip", "transformers", "sentence_transformers", "torchvision", "timm", "lightning", "PIL"}
    code = f"import sys, clip_common.backbones, clip_common.features; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_both_towers_equal_open_clip(small):
    model, images = theirs(small), torch.randn(3, 3, 32, 32)
    tokens = small.tokenizer(["a dog", "two cats on a mat", ""])
    with torch.no_grad():
        torch.testing.assert_close(small.image_tower(images).pooled, model.encode_image(images))
        torch.testing.assert_close(small.text_tower(tokens), model.encode_text(tokens), rtol=0, atol=3e-6)


def test_tokens_after_the_named_blocks_equal_open_clips_intermediates(small):
    visual, images = small.image_tower.trunk.visual, torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = small.image_tower(images, layers=(4, 1, 3))
        expected = visual.forward_intermediates(
            images, indices=[3, 0, 2], output_fmt="NLC", output_extra_tokens=True, normalize_intermediates=False
        )
    assert list(output.layers) == [4, 1, 3]
    for number, prefix, patches in zip(
        (1, 3, 4), expected["image_intermediates_prefix"], expected["image_intermediates"], strict=True
    ):
        torch.testing.assert_close(output.layers[number], torch.cat([prefix, patches], dim=1))
    torch.testing.assert_close(output.patches, visual.ln_post(output.layers[4])[:, 1:])
    torch.testing.assert_close(output.pooled, visual.ln_post(output.layers[4])[:, 0] @ visual.proj)
    assert not any(block.module._forward_hooks for block in small.image_tower.trunk.blocks)


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"ls_init_value": 0.3},
        {"final_ln_after_pool": True},
        {"pool_type": "avg"},
        {"qk_norm": True},
        {"attentional_pool": True, "attn_pooler_heads": 2},
    ],
    ids=["plain", "layer scale", "norm after pooling", "average", "custom blocks", "attention pooling"],
)
def test_the_embedding_alone_equals_that_of_the_whole_forward(vision):
    tower = load_clip("small", model_config=config(vision=vision)).image_tower
    parameters, images = list(tower.parameters()), torch.randn(3, 3, 32, 32)
    whole, alone = tower(images).pooled, tower.pooled(images)
    torch.testing.assert_close(alone, whole, rtol=0, atol=3e-6)
    direction = torch.randn_like(whole)
    expected = torch.autograd.grad((whole * direction).sum(), parameters, allow_unused=True)
    for one, other in zip(
        torch.autograd.grad((alone * direction).sum(), parameters, allow_unused=True), expected, strict=True
    ):
        if other is not None:
            assert (one - other).norm() <= 1e-5 * other.norm() + 1e-6


def test_the_embedding_alone_sends_only_the_class_token_through_the_last_block(small):
    seen, images = [], torch.randn(2, 3, 32, 32)
    mlp = small.image_tower.trunk.blocks[-1].module.mlp
    handle = mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    small.image_tower.pooled(images)
    small.image_tower(images)
    handle.remove()
    assert seen == [1, 17]


def test_gradients_reach_the_weights_through_layers_and_pooled(small):
    output = small.image_tower(torch.randn(2, 3, 32, 32), layers=(2,))
    (output.pooled.sum() + output.layers[2].square().sum()).backward()
    assert small.image_tower.trunk.visual.conv1.weight.grad.abs().sum() > 0
    small.image_tower.zero_grad()


@pytest.mark.parametrize("layer", [0, 5, -1])
def test_a_layer_that_is_not_there_is_refused(small, layer):
    with pytest.raises(BackboneError, match=rf"layer {layer} .* 1 to 4"):
        small.image_tower(torch.randn(1, 3, 32, 32), layers=(layer,))


def test_the_spec_says_what_the_towers_are(small):
    spec, image, text = small.spec, small.image.spec, small.text.spec
    assert (spec.kind, spec.name, spec.pretrained, spec.activation) == ("open_clip", "small", "random", "gelu")
    assert (image.kind, image.name, text.kind, text.name) == ("image", "small", "text", "small")
    assert (image.image_size, image.patch_size, image.grid, image.embed_dim) == (32, 8, (4, 4), 24)
    assert (image.width, image.depth, text.width, text.depth, text.embed_dim) == (32, 4, 32, 2, 24)
    assert text.context_length == 77
    assert small.logit_scale == pytest.approx(2.659, abs=1e-3)
    assert small.logit_bias is None


def test_random_weights_are_a_function_of_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (load_clip("small", model_config=CONFIG, seed=seed).spec.fingerprint for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other


def test_random_weights_equal_those_of_open_clips_own_class():
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(**CONFIG)
    bundle = load_clip("small", model_config=CONFIG, seed=0)
    assert torch.equal(bundle.text_tower.trunk.text.text_projection, model.text_projection)
    assert torch.equal(bundle.image_tower.trunk.visual.proj, model.visual.proj)


def test_activation_is_a_field_with_an_effect(small):
    quick = load_clip("small", model_config=CONFIG, activation="quick_gelu")
    assert quick.spec.activation == "quick_gelu"
    assert quick.spec.fingerprint == small.spec.fingerprint
    images, tokens = torch.randn(2, 3, 32, 32), small.tokenizer(["a dog"])
    assert not torch.allclose(quick.image_tower(images).pooled, small.image_tower(images).pooled)
    assert not torch.allclose(quick.text_tower(tokens), small.text_tower(tokens))
    assert load_clip("small", model_config=config(quick_gelu=True), activation="gelu").spec.activation == "gelu"


def test_openai_weights_default_to_quick_gelu_without_the_suffix(monkeypatch, tmp_path):
    from clip_common.backbones.origins import find_origin

    monkeypatch.setattr("clip_common.backbones.origins.fetch_tag", lambda name, tag, settings: tmp_path / "weights.pt")
    assert find_origin("ViT-L-14-336", pretrained="openai").config["quick_gelu"] is True
    assert not find_origin("ViT-B-32", pretrained="laion2b_s34b_b79k").config.get("quick_gelu")


def test_another_image_size_interpolates_positions_as_open_clip_does(small, tmp_path):
    from open_clip import create_model

    save_bundle(small, tmp_path)
    ours = load_clip(f"local-dir:{tmp_path}", image_size=56)
    model = create_model(f"local-dir:{tmp_path}", force_image_size=56)
    images = torch.randn(2, 3, 56, 56)
    assert (ours.image.spec.image_size, ours.image.spec.grid, ours.preprocess.size) == (56, (7, 7), 56)
    torch.testing.assert_close(ours.image_tower(images).pooled, model.encode_image(images))
    positions = ours.image_tower.trunk.visual.positional_embedding
    assert torch.equal(positions[0], small.image_tower.trunk.visual.positional_embedding[0])


def test_a_file_of_weights_loads_with_its_architecture(small, tmp_path):
    state = theirs(small).state_dict()
    for name, content in {
        "plain.pt": state,
        "lightning.ckpt": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "checkpoint_epoch_3.pt": {"epoch": 3, "model_state_dict": state},
    }.items():
        torch.save(content, tmp_path / name)
        bundle = load_clip("small", model_config=CONFIG, pretrained=str(tmp_path / name))
        assert bundle.spec.fingerprint == small.spec.fingerprint


def test_weights_with_an_unpacked_text_tower_load_too(small, tmp_path):
    state = {name.removeprefix("text."): tensor for name, tensor in theirs(small).state_dict().items()}
    torch.save(state, tmp_path / "clip.pt")
    bundle = load_clip("small", model_config=CONFIG, pretrained=str(tmp_path / "clip.pt"))
    assert bundle.spec.fingerprint == small.spec.fingerprint


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_without_text_the_image_tower_is_the_same_and_text_weights_are_not_there(small, tmp_path, suffix):
    """In both layouts of names: the text tower as a module of its own, and flat as OpenAI has it."""
    own = small.image_tower.trunk.state_dict() | small.text_tower.trunk.state_dict()
    own["logit_scale"] = torch.tensor(small.logit_scale)
    flat = {name.removeprefix("text."): value for name, value in own.items()}
    images = torch.randn(2, 3, 32, 32)
    for number, state in enumerate((own, flat)):
        file = tmp_path / f"{number}.{suffix}"
        save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
        half = load_clip("small", model_config=CONFIG, pretrained=str(file), text=False)
        assert all(weight.is_meta for weight in half.text_tower.parameters())
        assert half.spec.fingerprint == ""
        with torch.no_grad():
            torch.testing.assert_close(half.image_tower(images).pooled, small.image_tower(images).pooled)


def test_siglip_has_a_bias_and_coca_loses_its_decoder(tmp_path):
    assert load_clip("siglip", model_config=config(init_logit_bias=-10.0)).logit_bias == -10
    coca = load_clip(
        "coca",
        model_config=config(
            vision={"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            text={"embed_cls": True, "output_tokens": True},
            multimodal_cfg={"context_length": 76, "width": 32, "heads": 2, "layers": 1},
        ),
    )
    output = coca.image_tower(torch.randn(2, 3, 32, 32))
    assert output.pooled.shape == (2, 24)
    assert output.patches.shape == (2, 16, 32)
    assert coca.text_tower(coca.tokenizer(["a dog"])).shape == (1, 24)


def test_a_timm_transformer_has_layers_and_patches():
    bundle = load_clip(
        "timm", model_config=config(vision={"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160})
    )
    output = bundle.image_tower(torch.randn(2, 3, 160, 160), layers=(2,))
    prefix = bundle.image_tower.trunk.visual.trunk.num_prefix_tokens
    assert output.pooled.shape == (2, 24)
    assert output.patches.shape == (2, 100, bundle.image.spec.width)
    assert output.layers[2].shape == (2, 100 + prefix, bundle.image.spec.width)
    larger = load_clip(
        "timm",
        model_config=config(vision={"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160}),
        image_size=192,
    )
    assert larger.image_tower(torch.randn(1, 3, 192, 192)).patches.shape[1] == 144


@pytest.mark.parametrize(
    "vision",
    [
        {"timm_model_name": "test_convnext", "timm_pool": "avg", "image_size": 160},
        {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16, "image_size": 64},
    ],
    ids=["convnext", "resnet"],
)
def test_a_convolutional_tower_has_patches_but_no_layers(vision):
    bundle = load_clip("conv", model_config=config(vision=vision))
    size = bundle.image.spec.image_size
    output = bundle.image_tower.eval()(torch.randn(2, 3, size, size))
    assert output.pooled.shape == (2, 24)
    assert output.patches.shape == (2, bundle.image.spec.grid[0] ** 2, bundle.image.spec.width)
    assert bundle.image.spec.depth == 0
    with pytest.raises(BackboneError, match="not a transformer"):
        bundle.image_tower(torch.randn(1, 3, size, size), layers=(1,))


@pytest.mark.slow
def test_vit_b_32_equals_open_clip():
    bundle = load_clip("ViT-B-32", pretrained="random")
    model, images = theirs(bundle), torch.randn(2, 3, 224, 224)
    tokens = bundle.tokenizer(["a dog in the snow", "two people"])
    with torch.no_grad():
        torch.testing.assert_close(bundle.image_tower(images).pooled, model.encode_image(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(bundle.text_tower(tokens), model.encode_text(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("image_size", [64, 112])
def test_no_attention_map_is_written_without_gradients(image_size):
    tower = load_clip("tiny", image_size=image_size).image_tower
    images_B3HW = torch.rand(2, 3, image_size, image_size)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        tower(images_B3HW, layers=[2])
        tower.pooled(images_B3HW)
    names = {event.key for event in profile.key_averages()}
    assert "aten::scaled_dot_product_attention" in names
    assert not [name for name in names if "native_multi_head" in name or "transformer_encoder_layer" in name]
    assert torch.backends.mha.get_fastpath_enabled()  # as it was, for others
