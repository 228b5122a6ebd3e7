"""Variants of adapters against short references: placement, kinds, positions, norms, and views that stay frozen."""

import copy

import pytest
import torch
from torch.nn.functional import leaky_relu, normalize, pad

from aaclip.config import AdapterConfig, Config, HeadConfig
from aaclip.models import PlainCLIP
from aaclip.models.adapters import Adapter, Adapters, GridConvolution, choose_places
from aaclip.models.backbone import make_model
from aaclip.models.text import TextAdapter
from aaclip.models.vision import ImageAdapter
from clip_common.backbones import BackboneError
from clip_common.backbones.trunk import Block
from clip_common.config import load_config

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = ["a photo of a damaged metal nut.", "a nut."]
LEVELS = [2, 4, 8]
VARIANTS = [
    "adapters.kind=lora",
    "adapters.kind=conv",
    "adapters.placement=spread",
    "adapters.position=parallel",
    "adapters.norm=none",
    "adapters.norm=layer",
    "adapters.norm=learned",
    "adapters.kind=conv;adapters.placement=last;adapters.position=parallel;adapters.norm=learned",
]


def settings(variant):
    return load_config(Config, overrides=["adapters.text_blocks=2", *variant.split(";")])


def move_at_random(module):
    """Trained weights, for all that a test can tell."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def adapt_image(bundle, **fields):
    heads = HeadConfig()
    return ImageAdapter(bundle.image_tower, levels=LEVELS, adapters=AdapterConfig(**fields), heads=heads)


@pytest.mark.parametrize(
    ("placement", "count", "depth", "places"),
    [
        ("first", 6, 24, [1, 2, 3, 4, 5, 6]),
        ("last", 6, 24, [19, 20, 21, 22, 23, 24]),
        ("spread", 6, 24, [4, 8, 12, 16, 20, 24]),
        ("spread", 3, 12, [4, 8, 12]),
        ("spread", 3, 8, [2, 5, 8]),
        ("spread", 1, 24, [24]),
        ("spread", 8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        *((placement, 0, 8, []) for placement in ("first", "last", "spread")),
    ],
)
def test_placement_by_hand(placement, count, depth, places):
    assert choose_places(placement, count, depth=depth) == places


def test_no_adapter_is_behind_the_last_level(bundle):
    for placement, places in (("last", [4, 5]), ("spread", [2, 5])):
        module = ImageAdapter(
            bundle.image_tower, levels=[2, 5], adapters=AdapterConfig(placement=placement), heads=HeadConfig()
        )
        assert module.layers.places == places
    told = AdapterConfig(image_blocks=3, placement="last")
    with pytest.raises(ValueError, match="image tower has 8 blocks, of which the first 2 are read"):
        ImageAdapter(bundle.image_tower, levels=[1, 2], adapters=told, heads=HeadConfig())
    own = ImageAdapter(bundle.image_tower, levels=[1], adapters=AdapterConfig(), heads=HeadConfig())
    assert own.layers.places == [1]  # of a quarter of 8 blocks


@pytest.mark.parametrize("placement", ["first", "last", "spread"])
def test_adapters_are_where_their_numbers_say(bundle, placement):
    """Before an adapter's block the tokens are the frozen tower's, behind it they are not."""
    module = adapt_image(bundle, placement=placement, image_blocks=2)
    trunk = bundle.image_tower.trunk
    plain, x = [], trunk.embed(IMAGES)
    for block in trunk.blocks:
        x = block(x)
        plain.append(x)
    walked = module.walk(bundle.image_tower, IMAGES, depth=8)
    same = [torch.equal(one, other) for one, other in zip(walked, plain, strict=True)]
    assert same == [number < module.layers.places[0] for number in range(1, 9)]


def reference_adapter(layer, config, before, x):
    """Return the tokens behind an adapter, from its weights and the formulas of the documentation."""
    source = before if config.position == "parallel" else x
    weights = dict(layer.named_parameters())
    if config.kind == "linear":
        a = leaky_relu(source @ weights["0.weight"].T, 0.01)
    else:
        last, hidden = "2", source @ weights["0.weight"].T + weights["0.bias"]
        if "1.weight" in weights:
            last = "3"
            hidden = torch.cat([hidden[:, :1], reference_convolution(hidden[:, 1:], weights["1.weight"])], dim=1)
        a = leaky_relu(hidden, 0.2) @ weights[f"{last}.weight"].T + weights[f"{last}.bias"]
    if config.norm in ("tokens", "learned"):
        a = a / a.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)
    if config.norm == "learned":
        a = a * weights["factor"]
    if config.norm == "layer":
        scale, shift = list(weights.values())[-2:]
        a = (a - a.mean(-1, keepdim=True)) / (a.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * scale + shift
    return 0.1 * a + 0.9 * x


def reference_convolution(x, weight):
    """Sum the nine neighbours of each patch, channel by channel."""
    side = int(x.shape[1] ** 0.5)
    padded = pad(x.reshape(len(x), side, side, -1), (0, 0, 1, 1, 1, 1))
    rows = [
        sum(
            weight[:, 0, down, right] * padded[:, row + down, column + right] for down in range(3) for right in range(3)
        )
        for row in range(side)
        for column in range(side)
    ]
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("norm", ["tokens", "none", "layer", "learned"])
@pytest.mark.parametrize("position", ["after", "parallel"])
@pytest.mark.parametrize("kind", ["bottleneck", "mlp", "linear", "conv"])
def test_kinds_positions_and_norms_equal_the_reference_in_both_towers(bundle, kind, position, norm):
    config = AdapterConfig(kind=kind, position=position, norm=norm, placement="spread", text_blocks=2, image_blocks=2)
    text = move_at_random(TextAdapter(bundle.text_tower, config))
    tokens = bundle.tokenizer(TEXTS)
    own, x = bundle.text_tower.trunk.text, bundle.text_tower.trunk.embed(tokens, whole=True)
    for number, block in enumerate(own.transformer.resblocks, start=1):
        before, x = x, block(x, attn_mask=own.attn_mask)
        if number in (2, 4):
            x = reference_adapter(text.layers[number // 2 - 1], config, before, x)
    expected = text.final(own.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)])
    torch.testing.assert_close(text(bundle.text_tower, tokens), expected)

    image = move_at_random(ImageAdapter(bundle.image_tower, levels=LEVELS, adapters=config, heads=HeadConfig()))
    x, levels = bundle.image_tower.trunk.embed(IMAGES), []
    for number, block in enumerate(bundle.image_tower.trunk.visual.transformer.resblocks, start=1):
        before, x = x, block(x)
        if number in (4, 8):
            x = reference_adapter(image.layers[number // 4 - 1], config, before, x)
        if number in LEVELS:
            head = image.segmentation[LEVELS.index(number)]
            levels.append(normalize(head(bundle.image_tower.trunk.norm(x[:, 1:])), dim=-1))
    torch.testing.assert_close(image(bundle.image_tower, IMAGES).levels, levels, atol=1e-4, rtol=1e-4)


def test_norms_by_hand():
    x, a = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    for norm, expected in (("tokens", [2.7, 4.1]), ("learned", [2.7, 4.6]), ("none", [2.7, 3.8])):
        adapter = Adapter(AdapterConfig(kind="linear", norm=norm), 2, weight=0.1, grid=False)
        if adapter.factor is not None:
            assert adapter.factor == 1
            adapter.factor.data.fill_(2)
        assert adapter.mix(x, a).tolist() == [pytest.approx(expected)]
    layer = Adapter(AdapterConfig(kind="linear", norm="layer"), 2, weight=0.1, grid=False)
    layer[0].weight.data = torch.eye(2)
    assert layer(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1, 1], abs=1e-4)


def test_a_convolution_by_hand_starts_as_the_identity_and_leaves_the_class_token():
    conv, x = GridConvolution(2), torch.randn(2, 10, 2)
    assert torch.equal(conv(x), x)
    conv.weight.data.zero_()[0, 0, 0, 1] = 1  # the first channel takes the patch above
    found = conv(x)
    assert torch.equal(found[:, 0], x[:, 0])
    grid, moved = (one[:, 1:].reshape(2, 3, 3, 2) for one in (x, found))
    assert torch.equal(moved[:, 1:, :, 0], grid[:, :-1, :, 0])
    assert not moved[:, 0].any()
    assert not moved[..., 1].any()


def test_an_untrained_convolution_is_the_bottleneck(bundle):
    modules = []
    for kind in ("conv", "bottleneck"):
        torch.manual_seed(0)
        modules.append(adapt_image(bundle, kind=kind))
    found, expected = (module(bundle.image_tower, IMAGES).levels for module in modules)
    torch.testing.assert_close(found, expected)
    text = [TextAdapter(bundle.text_tower, AdapterConfig(kind=kind)).state_dict() for kind in ("conv", "bottleneck")]
    assert text[0].keys() == text[1].keys()


@pytest.mark.parametrize("grads", [False, True])
def test_untrained_low_rank_updates_are_plain_clip(bundle, grads):
    text = TextAdapter(bundle.text_tower, AdapterConfig(kind="lora", text_blocks=4))
    image = adapt_image(bundle, kind="lora", image_blocks=8)
    tokens = bundle.tokenizer(TEXTS)
    with torch.set_grad_enabled(grads):
        torch.testing.assert_close(text(bundle.text_tower, tokens), bundle.text_tower(tokens))
        patches = image.patches(bundle.image_tower, IMAGES)
        output = bundle.image_tower(IMAGES, layers=LEVELS)
        expected = [bundle.image_tower.trunk.norm(output.layers[level][:, 1:]) for level in LEVELS]
        torch.testing.assert_close(patches, expected)


@pytest.mark.parametrize("grads", [False, True])
def test_low_rank_updates_equal_matrices_they_are_merged_into(bundle, grads):
    config = AdapterConfig(kind="lora", rank=3, text_blocks=2, image_blocks=3, placement="last")
    text = move_at_random(TextAdapter(bundle.text_tower, config))
    image = move_at_random(ImageAdapter(bundle.image_tower, levels=LEVELS, adapters=config, heads=HeadConfig()))
    texts, visual = copy.deepcopy(bundle.text_tower), copy.deepcopy(bundle.image_tower)
    for module, blocks in ((text, texts.trunk.blocks), (image, visual.trunk.blocks)):
        for place, layer in zip(module.layers.places, module.layers, strict=True):
            merged = blocks[place - 1].module.attn.in_proj_weight
            width = merged.shape[1]
            with torch.no_grad():
                for rows, (down, up) in ((slice(width), layer.query), (slice(2 * width, None), layer.value)):
                    merged[rows] += 8 / 3 * up.weight @ down.weight
    tokens = bundle.tokenizer(TEXTS)
    with torch.set_grad_enabled(grads):
        expected = texts.trunk.readout(run_blocks(texts.trunk, tokens), tokens, projection=text.final)
        torch.testing.assert_close(text(bundle.text_tower, tokens), expected)
        output = visual(IMAGES, layers=LEVELS)
        expected = [visual.trunk.norm(output.layers[level][:, 1:]) for level in LEVELS]
        found = image.patches(bundle.image_tower, IMAGES)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found[-1], image.patches(bundle.image_tower, IMAGES.flip(0))[-1], atol=1e-2)


def run_blocks(trunk, tokens):
    x = trunk.embed(tokens)
    for block in trunk.blocks:
        x = block(x)
    return x


def test_low_rank_updates_need_blocks_with_parts(bundle):
    blocks = [Block(block.module) for block in bundle.text_tower.trunk.blocks]
    with pytest.raises(BackboneError, match=r"adapters\.kind=lora: the text tower's blocks are not CLIP's"):
        Adapters(AdapterConfig(kind="lora"), tower="text", blocks=blocks, depth=4, width=16)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_reaches_every_new_weight_and_leaves_the_frozen_views(bundle, variant):
    model = make_model(bundle, settings(variant))
    move_at_random(model.text_adapter)
    move_at_random(model.image_adapter)
    tower = {name: value.clone() for name, value in model.state_dict().items() if "tower" in name}
    before = read_frozen(model)
    text = normalize(model.encode_text(["a mug.", "a damaged mug."]), dim=-1).T.expand(3, -1, -1)
    evidence = model(IMAGES, text)
    sum(level.square().sum() for level in evidence.levels).backward()
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.startswith(("image_adapter", "text_adapter"))
    }
    for name, parameter in trained.items():
        assert parameter.grad.abs().max() > 0, name
    torch.optim.SGD(trained.values(), lr=1e-2).step()
    with torch.no_grad():
        moved = model(IMAGES, text.detach())
    assert not torch.allclose(moved.levels[-1], evidence.levels[-1])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in tower.items())
    assert all(torch.equal(one, other) for one, other in zip(before, read_frozen(model), strict=True))


def read_frozen(model):
    """Return the V-V patches and the class embedding of the frozen tower."""
    return [*model.frozen_patches(IMAGES), PlainCLIP(model.bundle).features(IMAGES).detection]


@pytest.mark.parametrize("variant", VARIANTS)
def test_cross_attention_is_between_the_first_block_and_its_adapter(bundle, variant):
    config = settings(variant)
    module = TextAdapter(bundle.text_tower, config.adapters)
    tokens, seen = bundle.tokenizer(TEXTS), []

    def attend(x):
        seen.append(x)
        return x

    found = module(bundle.text_tower, tokens, attend=attend)
    assert torch.equal(found, module(bundle.text_tower, tokens))
    trunk = bundle.text_tower.trunk
    torch.testing.assert_close(seen, [trunk.blocks[0](trunk.embed(tokens))])


def test_an_inventory_counts_each_variant(bundle):
    for variant, image in (
        ("adapters.kind=lora", 2 * 4 * 8 * 32),
        ("adapters.kind=conv", 2 * (32 * 16 + 16 + 9 * 16 + 16 * 32 + 32)),
        ("adapters.norm=layer", 2 * (32 * 16 + 16 + 16 * 32 + 32 + 64)),
        ("adapters.norm=learned", 2 * (32 * 16 + 16 + 16 * 32 + 32 + 1)),
    ):
        counts = {name: count for name, count, _ in make_model(bundle, settings(variant)).inventory()}
        assert counts["image adapters"] == image


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("adapters.kind=conv2", "adapters.kind"),
        ("adapters.placement=middle", "adapters.placement"),
        ("adapters.position=before", "adapters.position"),
        ("adapters.norm=true", "adapters.norm"),
        ("adapters.rank=0", "adapters.rank: expected a whole number from 1, got 0"),
        ("adapters.kind=lora;adapters.position=parallel", "lora changes the block itself"),
    ],
)
def test_a_wrong_value_is_one_line(override, said):
    with pytest.raises(ValueError, match=said) as error:
        load_config(Config, overrides=override.split(";"))
    assert "\n" not in str(error.value)
