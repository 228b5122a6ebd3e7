"""The tiny CLIP that is in the package: what every command, test and demo without a network stands on.

The bars are below what `benchmarks/tiny.py` measures on thousands of pictures (the card has those figures), and far
from what an untrained model reaches.
"""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from clip_common.backbones import load_clip
from clip_common.backbones.shipped import TINY
from clip_common.metrics import image_text_retrieval
from clip_common.synthetic import captions, part_captions, render, render_part, sample_part, sample_scene
from clip_common.synthetic.part_captions import DAMAGED, FLAWLESS, OPENINGS
from clip_common.synthetic.parts import novelty
from clip_common.synthetic.scenes import KINDS

SEED = 77  # pretraining drew seed 0, the benchmark draws from 1000 on


@pytest.fixture(scope="module")
def tiny():
    bundle = load_clip("tiny")
    bundle.image_tower.eval()
    bundle.text_tower.eval()
    return bundle


@torch.inference_mode()
def embed(tiny, images=None, texts=None):
    if images is not None:
        return normalize(tiny.image_tower.pooled(torch.stack([tiny.preprocess(image) for image in images])), dim=1)
    return normalize(tiny.text_tower(tiny.tokenizer(texts)), dim=1)


def test_it_is_small_and_what_the_page_says(tiny):
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 6 * 2**20
    spec = tiny.image.spec
    assert (spec.patch_size, spec.depth, tiny.text.spec.context_length) == (8, 8, 77)
    images = torch.zeros(1, 3, spec.image_size, spec.image_size)
    layers = tiny.image_tower(images, layers=(2, 4, 6, 8)).layers
    assert {tokens.shape for tokens in layers.values()} == {(1, 1 + (spec.image_size // 8) ** 2, 128)}


def test_it_finds_scenes_that_it_has_not_seen(tiny):
    scenes = [sample_scene(SEED, index) for index in range(200)]
    image_ND = embed(tiny, images=[render(scene, size=tiny.image.spec.image_size) for scene in scenes])
    texts = [text for scene in scenes for text in captions(scene)]
    owner = torch.arange(200).repeat_interleave(5)
    metrics = image_text_retrieval(image_ND, embed(tiny, texts=texts), owner).metrics
    assert metrics["i2t/R@1"] > 0.85
    assert metrics["t2i/R@1"] > 0.8


def test_it_names_kinds_that_it_has_not_seen_in_these_pictures(tiny):
    parts = [sample_part(SEED, index).flawless() for index in range(160)]
    image_ND = embed(tiny, images=[render_part(part, size=tiny.image.spec.image_size)[0] for part in parts])
    said = [f"{opening} a {kind}".strip() for kind in KINDS for opening in OPENINGS]
    class_KD = embed(tiny, texts=said).unflatten(0, (len(KINDS), -1)).mean(dim=1)
    guess = (image_ND @ normalize(class_KD, dim=1).T).argmax(dim=1)
    right = [KINDS[int(number)] == part.kind for number, part in zip(guess, parts, strict=True)]
    assert sum(right) / len(right) > 0.95


def test_it_tells_a_part_from_its_damaged_twin(tiny):
    parts = [sample_part(SEED, index) for index in range(150)]
    both = [part for one in parts for part in (one, one.flawless())]
    image_ND = embed(tiny, images=[render_part(part, size=tiny.image.spec.image_size)[0] for part in both])
    text_ND = embed(tiny, texts=[part_captions(part)[0] for part in both])
    own = (image_ND * text_ND).sum(dim=1)
    twins = (image_ND * text_ND.reshape(-1, 2, 128).flip(1).reshape(-1, 128)).sum(dim=1)
    assert (own > twins).float().mean() > 0.75


def test_it_tells_damaged_from_flawless_by_words_alone(tiny):
    """Image AUROC of damage that it knows, on the axis between what people say of damaged and of flawless things."""
    known = [
        part
        for part in (sample_part(SEED, index) for index in range(300))
        if novelty(part.kind, part.defect) == "known"
    ]
    both = [part for one in known for part in (one, one.flawless())]
    image_ND = embed(tiny, images=[render_part(part, size=tiny.image.spec.image_size)[0] for part in both])
    axes = {
        kind: [
            embed(tiny, texts=[f"{opening} a {word} {kind}".strip() for word in words for opening in OPENINGS]).mean(0)
            for words in (DAMAGED, FLAWLESS)
        ]
        for kind in KINDS
    }
    axis_ND = torch.stack([axes[part.kind][0] - axes[part.kind][1] for part in both])
    scores = (image_ND * axis_ND).sum(dim=1)
    assert roc_auc_score([part.defect is not None for part in both], scores) > 0.85


@pytest.mark.parametrize("text", ["a photo of a zeppelin", "Äpfel 図書館 🍏", ""])
def test_any_word_tokenises(tiny, text):
    tokens = tiny.tokenizer([text])
    assert tokens.shape == (1, 77)
    assert torch.isfinite(tiny.text_tower(tokens)).all()


def test_a_text_longer_than_the_context_is_cut_and_still_ends(tiny):
    long, longer = tiny.tokenizer(["zeppelin " * 50, "zeppelin " * 90])
    assert torch.equal(long, longer)
    assert long[-1] == long.max()


@pytest.mark.parametrize("size", [64, 224])
def test_other_sizes_interpolate_the_positions(size):
    bundle = load_clip("tiny", image_size=size)
    image = render(sample_scene(SEED, 0), size=size)
    assert bundle.preprocess(image).shape == (3, size, size)
    assert bundle.image_tower(bundle.preprocess(image)[None]).patches.shape == (1, (size // 8) ** 2, 128)
