"""Two frozen models under trainable heads: tiny ones made here, and the real DINOv2 and MiniLM."""

import numpy as np
import pytest
import torch
import transformers
from helpers.real import real_model
from PIL import Image
from torch.nn import functional

from clip_common.backbones import BackboneError, behaviour, fingerprint, load_bundle, load_dual, save_bundle
from clip_common.backbones.text_models import SentenceText, TransformersText
from clip_common.backbones.trunk import resize_positions

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "a", "the", "dog", "cat", "red", "blue", "in", "on", "snow", "sits"]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **special)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models as transformers and sentence-transformers save them."""
    from sentence_transformers import SentenceTransformer

    root = tmp_path_factory.mktemp("models ü")
    torch.manual_seed(0)
    wide = {"intermediate_size": 64}
    text = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(WORDS), **wide}
    vision = SMALL | wide
    eos = {"eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    bert = transformers.BertConfig(**text, max_position_embeddings=20)
    models = {
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, mlp_ratio=2)),
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text | eos | {"max_position_embeddings": 16}, vision_config=vision)
        ),
        "siglip": transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text | {"max_position_embeddings": 16}, vision_config=vision)
        ),
        "clip_vision": transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**vision)),
        "bert": transformers.BertModel(bert),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        if name in ("bert", "clip", "siglip"):
            tokenizer().save_pretrained(root / name)
    SentenceTransformer(str(root / "bert"), device="cpu").save_pretrained(str(root / "sentence"))
    return root


@pytest.fixture
def dual(folders):
    return load_dual(vision=folders / "dinov2", text=folders / "sentence", embed_dim=16, image_size=28)


@pytest.mark.parametrize(
    ("name", "loader", "prefix"),
    [
        ("dinov2", "Dinov2Model", 1),
        ("clip", "CLIPVisionModel", 1),
        ("clip_vision", "CLIPVisionModel", 1),
        ("siglip", "SiglipVisionModel", 0),
    ],
)
def test_a_vision_model_gives_its_own_outputs(folders, name, loader, prefix):
    bundle = load_dual(vision=folders / name, text=folders / "sentence", embed_dim=16, image_size=28)
    model = getattr(transformers, loader).from_pretrained(folders / name, dtype=torch.float32).eval()
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = model(pixel_values=images, output_hidden_states=True)
        output = bundle.image_tower(images, layers=(1, 3))
    torch.testing.assert_close(bundle.image_tower.trunk_features(images), expected.pooler_output)
    torch.testing.assert_close(output.patches, expected.last_hidden_state[:, prefix:])
    assert output.patches.shape == (2, 16, 32)
    torch.testing.assert_close(output.layers, {number: expected.hidden_states[number] for number in (1, 3)})
    torch.testing.assert_close(output.pooled, bundle.image_tower.head(expected.pooler_output))
    assert (bundle.image.spec.depth, bundle.image.spec.grid, bundle.image.spec.patch_size) == (3, (4, 4), 7)


def test_attention_runs_through_sdpa(dual):
    assert dual.image_tower.trunk.model.config._attn_implementation == "sdpa"
    assert dual.text_tower.trunk.model[0].auto_model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["dinov2", "clip", "siglip"])
def test_another_image_size_interpolates_positions_and_keeps_the_class_token(folders, name):
    native = load_dual(vision=folders / name, text=folders / "sentence", image_size=28)
    larger = load_dual(vision=folders / name, text=folders / "sentence", image_size=42)

    def table(bundle):
        embeddings = bundle.image_tower.trunk.model.embeddings
        own = getattr(embeddings, "position_embeddings", None)
        return own[0] if own is not None else embeddings.position_embedding.weight

    prefix = 0 if name == "siglip" else 1
    old, new = table(native), table(larger)
    square = old[prefix:].T.reshape(1, 32, 4, 4)
    expected = functional.interpolate(square, size=(6, 6), mode="bicubic", antialias=True)
    torch.testing.assert_close(new[prefix:], expected.reshape(32, 36).T)
    assert torch.equal(new[:prefix], old[:prefix])
    assert larger.image_tower(torch.randn(1, 3, 42, 42)).patches.shape == (1, 36, 32)
    assert larger.preprocess(Image.new("RGB", (60, 50))).shape == (3, 42, 42)
    assert larger.spec.fingerprint == native.spec.fingerprint


def test_positions_of_the_same_grid_are_left_alone():
    table = torch.randn(17, 8)
    assert resize_positions(table, grid=4) is table


def test_a_sentence_transformer_gives_its_own_embeddings(folders, dual):
    from sentence_transformers import SentenceTransformer

    texts = ["a dog in the snow", "the cat sits", "a"]
    expected = SentenceTransformer(str(folders / "sentence"), device="cpu").encode(texts, convert_to_tensor=True)
    assert isinstance(dual.text_tower.trunk, SentenceText)
    features = dual.text_tower.trunk_features(dual.tokenizer(texts))
    torch.testing.assert_close(features, expected.clone(), rtol=0, atol=1e-6)
    assert dual.text_tower(dual.tokenizer(texts)).shape == (3, 16)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_a_sentence_transformer_gives_its_own_embeddings_under_its_default_prompt(folders, tmp_path, include_prompt):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folders / "sentence"), device="cpu", prompts={"q": "the red : "}, default_prompt_name="q"
    )
    model.set_pooling_include_prompt(include_prompt)
    model.save_pretrained(str(tmp_path / "prompted"))
    bundle = load_dual(vision=folders / "dinov2", text=tmp_path / "prompted", image_size=28)
    texts = ["a dog in the snow", "the cat sits", "a"]
    expected = model.encode(texts, convert_to_tensor=True).clone()
    plain = model.encode(texts, convert_to_tensor=True, prompt="")
    assert (expected - plain).abs().max() > 0.1
    tokens = bundle.tokenizer(texts)
    assert all(len(tensor) == 3 for tensor in tokens.values())
    torch.testing.assert_close(bundle.text_tower.trunk_features(tokens), expected, rtol=0, atol=1e-6)


def test_another_pooling_of_the_same_weights_is_another_behaviour(folders, tmp_path):
    import json
    import shutil

    from clip_common.features import FeatureCache

    bundles = {}
    for mode in ("mean", "cls"):
        shutil.copytree(folders / "sentence", tmp_path / mode)
        file = tmp_path / mode / "1_Pooling" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pooling_mode": mode}))
        bundles[mode] = load_dual(vision=folders / "dinov2", text=tmp_path / mode, image_size=28)
    trunks = {mode: bundle.text_tower.trunk for mode, bundle in bundles.items()}
    assert fingerprint(trunks["mean"]) == fingerprint(trunks["cls"])
    assert behaviour(trunks["mean"]) != behaviour(trunks["cls"])
    store, texts = FeatureCache(tmp_path / "cache"), ["a dog in the snow", "the cat sits"]
    mean, cls = (store.features(bundles[mode].text, texts) for mode in ("mean", "cls"))
    torch.testing.assert_close(cls, trunks["cls"](bundles["cls"].tokenizer(texts)), rtol=0, atol=1e-5)
    assert (mean - cls).abs().max() > 0.1


@pytest.mark.parametrize("name", ["dinov2", "clip", "siglip"])
def test_behaviour_does_not_depend_on_the_place_nor_on_having_run(folders, tmp_path, name):
    import shutil

    text = "sentence" if name == "dinov2" else name
    shutil.copytree(folders, tmp_path / "moved")
    own, moved = (
        load_dual(vision=root / name, text=root / text, image_size=42) for root in (folders, tmp_path / "moved")
    )
    own.image_tower(torch.randn(1, 3, 42, 42), layers=(1,))
    own.text_tower(own.tokenizer(["a dog"]))
    assert behaviour(own.image_tower) == behaviour(moved.image_tower)
    assert behaviour(own.text_tower) == behaviour(moved.text_tower)


def test_a_plain_text_model_is_averaged_over_its_tokens(folders):
    bundle = load_dual(vision=folders / "dinov2", text=folders / "bert", image_size=28)
    assert isinstance(bundle.text_tower.trunk, TransformersText)
    model = transformers.BertModel.from_pretrained(folders / "bert").eval()
    together = bundle.text_tower.trunk_features(bundle.tokenizer(["a dog", "the red cat sits on snow"]))
    with torch.no_grad():
        alone = model(**tokenizer()(["a dog"], return_tensors="pt")).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_text_half_gives_its_pooled_token(folders, name):
    bundle = load_dual(vision=folders / name, text=folders / name, image_size=28)
    loader = {"clip": transformers.CLIPTextModel, "siglip": transformers.SiglipTextModel}[name]
    tokens = bundle.tokenizer(["a dog", "the red cat sits on snow"])
    with torch.no_grad():
        expected = loader.from_pretrained(folders / name).eval()(input_ids=tokens["input_ids"]).pooler_output
    torch.testing.assert_close(bundle.text_tower.trunk_features(tokens), expected)
    assert tokens["input_ids"].shape[1] == (16 if name == "siglip" else 8)


def test_trunks_are_frozen_and_heads_train(dual):
    optimizer = torch.optim.SGD(
        [p for t in (dual.image_tower, dual.text_tower) for p in t.parameters() if p.requires_grad]
    )
    before = fingerprint(dual.image_tower.trunk), fingerprint(dual.text_tower.trunk)
    dual.image_tower.train()
    dual.text_tower.train()
    assert dual.image_tower.head.training
    assert not any(module.training for module in dual.text_tower.trunk.modules())
    loss = dual.image_tower(torch.randn(2, 3, 28, 28)).pooled.sum() + dual.text_tower(dual.tokenizer(["a dog"])).sum()
    loss.backward()
    head = dual.image_tower.head[1].weight.clone()
    optimizer.step()
    assert (fingerprint(dual.image_tower.trunk), fingerprint(dual.text_tower.trunk)) == before
    assert not torch.equal(head, dual.image_tower.head[1].weight)


def test_heads_are_a_function_of_kind_and_seed(folders):
    def heads(**options):
        bundle = load_dual(vision=folders / "dinov2", text=folders / "sentence", embed_dim=16, image_size=28, **options)
        return fingerprint(bundle.image_tower.head), sum(p.numel() for p in bundle.image_tower.head.parameters())

    assert heads(seed=1) == heads(seed=1) != heads(seed=2)
    assert heads()[1] == 32 * 16 + 16
    assert heads(head="mlp")[1] == 32 * 32 + 32 + 32 * 16 + 16


def test_the_folders_own_preprocessing_is_followed(folders, tmp_path):
    import json
    import shutil

    shutil.copytree(folders / "dinov2", tmp_path / "dino")
    settings = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
        "resample": 2,
    }
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = load_dual(vision=tmp_path / "dino", text=folders / "sentence").preprocess
    assert (preprocess.size, preprocess.resize, preprocess.interpolation) == (28, 32, "bilinear")
    assert (preprocess.mean, preprocess.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    settings = {"size": {"height": 28, "width": 28}, "resample": 3}
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = load_dual(vision=tmp_path / "dino", text=folders / "sentence").preprocess
    assert (preprocess.size, preprocess.resize, preprocess.resize_mode) == (28, None, "squash")
    assert load_dual(vision=folders / "dinov2", text=folders / "sentence").preprocess.size == 224


def test_a_dual_is_saved_by_its_heads_and_comes_back(folders, dual, tmp_path):
    dual.logit_scale = 3.25
    with torch.no_grad():
        dual.image_tower.head[1].weight.add_(1)
    save_bundle(dual, tmp_path / "dual")
    again = load_bundle(tmp_path / "dual")
    assert (tmp_path / "dual" / "model.safetensors").stat().st_size < 10_000
    images, tokens = torch.randn(2, 3, 28, 28), dual.tokenizer(["a dog"])
    torch.testing.assert_close(again.image_tower(images).pooled, dual.image_tower(images).pooled)
    torch.testing.assert_close(again.text_tower(tokens), dual.text_tower(tokens))
    assert (again.logit_scale, again.spec) == (3.25, dual.spec)


def refused(*words: str, **arguments):
    with pytest.raises(BackboneError) as caught:
        load_dual(**arguments)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_mistakes_are_one_line(folders, tmp_path):
    import shutil

    sentence, dinov2 = folders / "sentence", folders / "dinov2"
    refused("absent", "no such folder", vision=tmp_path / "absent", text=sentence)
    refused("prefetch nobody/nothing", vision="nobody/nothing", text=sentence)
    refused("prefetch nobody/words", vision=dinov2, text="nobody/words")
    refused("expected a vision model", vision=folders / "bert", text=sentence)
    refused("expected a text model", vision=dinov2, text=dinov2)
    refused("head 'cubic'", "linear or mlp", vision=dinov2, text=sentence, head="cubic", image_size=28)
    refused("cannot be loaded", vision=tmp_path, text=sentence)
    damaged = tmp_path / "damaged"
    shutil.copytree(dinov2, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("damaged", "cannot be loaded", vision=damaged, text=sentence)
    words = tmp_path / "words"
    shutil.copytree(sentence, words)
    (words / "model.safetensors").write_bytes(b"")
    refused("words", "SentenceTransformer", vision=dinov2, text=words)


def test_missing_weights_are_never_drawn_at_random(folders, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folders / "dinov2", tmp_path / "dino")
    state = load_file(tmp_path / "dino" / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "dino" / "model.safetensors", metadata={"format": "pt"})
    refused("incomplete", "layernorm.weight", vision=tmp_path / "dino", text=folders / "sentence")


def test_a_trunk_that_is_gone_or_has_other_weights_is_refused(folders, tmp_path):
    import shutil

    shutil.copytree(folders / "dinov2", tmp_path / "dino")
    bundle = load_dual(vision=tmp_path / "dino", text=folders / "sentence", image_size=28)
    save_bundle(bundle, tmp_path / "dual")
    torch.manual_seed(9)
    transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, mlp_ratio=2)).save_pretrained(tmp_path / "dino")
    with pytest.raises(BackboneError, match=r"does not hold the weights.*config\.json"):
        load_bundle(tmp_path / "dual")
    shutil.rmtree(tmp_path / "dino")
    with pytest.raises(BackboneError, match="needs its trunks"):
        load_bundle(tmp_path / "dual")


def test_a_dual_with_an_unfrozen_trunk_is_not_saved(dual, tmp_path):
    dual.text_tower.trunk.requires_grad_(True)
    with pytest.raises(BackboneError, match="unfrozen"):
        save_bundle(dual, tmp_path / "dual")


@pytest.mark.parametrize("image_size", [28, 42])
def test_a_dual_whose_trunk_was_trained_and_frozen_again_is_not_saved(folders, tmp_path, image_size):
    bundle = load_dual(vision=folders / "dinov2", text=folders / "sentence", image_size=image_size)
    save_bundle(bundle, tmp_path / "dual")
    assert load_bundle(tmp_path / "dual").trunks == bundle.trunks
    with torch.no_grad():
        bundle.image_tower.trunk.model.layernorm.weight.add_(1)
    with pytest.raises(BackboneError, match="was trained since it was loaded"):
        save_bundle(bundle, tmp_path / "dual")


@pytest.mark.real
def test_minilm_knows_which_captions_mean_the_same():
    bundle = load_dual(vision=real_model("dinov2"), text=real_model("minilm"))
    texts = ["a dog runs in the snow", "a puppy is running through snow", "stock prices fell on Monday"]
    features = bundle.text_tower.trunk_features(bundle.tokenizer(texts))
    close, far = functional.cosine_similarity(features[:1], features[1:])
    assert close > 0.7
    assert far < 0.2


@pytest.mark.real
def test_dinov2_sees_that_two_crops_are_of_one_picture():
    bundle = load_dual(vision=real_model("dinov2"), text=real_model("minilm"))
    assert (bundle.image.spec.width, bundle.image.spec.depth, bundle.image.spec.grid) == (384, 12, (16, 16))
    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
        for _ in range(2)
    ]
    crops = [pictures[0], pictures[0].crop((20, 10, 310, 235)), pictures[1]]
    features = bundle.image_tower.trunk_features(torch.stack([bundle.preprocess(crop) for crop in crops]))
    same, other = functional.cosine_similarity(features[:1], features[1:])
    assert same > other
    assert torch.isfinite(features).all()
