"""Tiny CLIP on held-out worlds: retrieval of scenes, zero-shot kinds, and damaged against flawless parts.

    uv run python benchmarks/tiny.py                                      # the packaged model
    uv run python benchmarks/tiny.py --model local-dir:runs/tiny/clipse/tiny-112/model --seeds 3

Training uses none of these seeds. Retrieval is reported with the attribute oracle on the same captions, and the
zero-shot image AUROC of damaged against flawless parts with that of a linear classifier trained on 700 thumbnails.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import chain, product

import torch
from _measure import report
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from clip_common.backbones import Bundle, load_clip
from clip_common.metrics import StreamingCurve, image_text_retrieval
from clip_common.synthetic import (
    attribute_oracle,
    captions,
    novelty,
    render,
    render_part,
    sample_part,
    sample_scene,
    thumbnail_auroc,
)
from clip_common.synthetic.captions import WORDS, add_article
from clip_common.synthetic.part_captions import DAMAGED, DAMAGED_AFTER, FLAWLESS, FLAWLESS_AFTER, OPENINGS
from clip_common.synthetic.parts import Part
from clip_common.synthetic.scenes import COLOURS, KINDS, TEXTURES

FIRST_SEED = 1000
PART_PROMPTS = tuple(f"{opening} {{a_kind}}".strip() for opening in OPENINGS)
SCENE_PROMPTS = tuple(
    f"a {size} {texture} {colour} {{kind}}"
    for size, texture, colour in product(chain(*WORDS["size"].values()), TEXTURES, COLOURS)
)
"""One thing in a scene, in all sizes, textures and colours; PART_PROMPTS describe close-ups. Of ten such prompt sets,
this one scored best on nine other worlds."""
NOVELTIES = ("known", "held pair", "held kind")


@torch.inference_mode()
def embed_images(bundle: Bundle, images: Sequence[Image.Image]) -> Tensor:
    """Return (N, D) unit vectors of images."""
    parts = [
        bundle.image_tower.pooled(torch.stack([bundle.preprocess(image) for image in images[start : start + 128]]))
        for start in range(0, len(images), 128)
    ]
    return normalize(torch.cat(parts).float(), dim=-1)


@torch.inference_mode()
def embed_texts(bundle: Bundle, texts: Sequence[str]) -> Tensor:
    """Return (N, D) unit vectors of texts."""
    parts = [bundle.text_tower(bundle.tokenizer(texts[start : start + 512])) for start in range(0, len(texts), 512)]
    return normalize(torch.cat(parts).float(), dim=-1)


def embed_class(bundle: Bundle, phrases: Sequence[str]) -> Tensor:
    """Return the (D,) unit mean of several phrases with one meaning."""
    return normalize(embed_texts(bundle, phrases).mean(0), dim=0)


def score_retrieval(bundle: Bundle, seed: int, scenes: int) -> dict[str, float]:
    """Return R@1 of both directions for `scenes` scenes with five captions each, ours and the attribute oracle's."""
    drawn = [sample_scene(seed, index) for index in range(scenes)]
    texts = [captions(scene) for scene in drawn]
    images = embed_images(bundle, [render(scene, size=bundle.image.spec.image_size) for scene in drawn])
    metrics = image_text_retrieval(
        images,
        embed_texts(bundle, [text for own in texts for text in own]),
        torch.arange(scenes).repeat_interleave(5),
    ).metrics
    oracle = attribute_oracle(drawn, texts)
    return {key: metrics[key] for key in ("i2t/R@1", "t2i/R@1")} | {
        f"oracle {key}": oracle[key] for key in ("i2t/R@1", "t2i/R@1")
    }


def score_kinds(
    bundle: Bundle, count: int, draw: Callable[[int], tuple[Image.Image, str]], prompts: Sequence[str]
) -> float:
    """Return zero-shot accuracy over KINDS; `prompts` hold `{kind}`, or `{a_kind}` for the kind with its article."""
    classes = torch.stack(
        [
            embed_class(bundle, [prompt.format(kind=kind, a_kind=add_article(kind)) for prompt in prompts])
            for kind in KINDS
        ]
    )
    drawn = [draw(index) for index in range(count)]
    guess = (embed_images(bundle, [image for image, _ in drawn]) @ classes.T).argmax(dim=1)
    return statistics.mean(KINDS[int(g)] == kind for g, (_, kind) in zip(guess, drawn, strict=True))


def score_parts(bundle: Bundle, parts: Sequence[Part], images: Sequence[Image.Image]) -> Tensor:
    """Return (N,) similarity of each part to the phrases for damage, minus similarity to those for flawless parts."""
    axes = {
        kind: embed_class(bundle, write_phrases(kind, DAMAGED, DAMAGED_AFTER))
        - embed_class(bundle, write_phrases(kind, FLAWLESS, FLAWLESS_AFTER))
        for kind in KINDS
    }
    embedded = embed_images(bundle, images)
    return (embedded * torch.stack([axes[part.kind] for part in parts])).sum(1)


def write_phrases(kind: str, adjectives: Sequence[str], after: Sequence[str]) -> list[str]:
    """Return every opening with every adjective before the kind, and with every phrase after it."""
    phrases = [
        *(add_article(f"{adjective} {kind}") for adjective in adjectives),
        *(f"{add_article(kind)} {words}" for words in after),
    ]
    return [f"{opening} {phrase}".strip() for opening in OPENINGS for phrase in phrases]


def compute_auroc(scores: Tensor, damaged: Tensor) -> float:
    """Return the AUROC of scores for damaged against flawless images."""
    curve = StreamingCurve()
    curve.update(scores, damaged)
    return float(curve.compute().auroc)


def score_damage(bundle: Bundle, seed: int, count: int) -> dict[str, float]:
    """Return image AUROC per novelty of damage, against the same parts without it, and the thumbnail guard's AUROC."""
    parts = [sample_part(seed, index) for index in range(count)]
    variants = [one for part in parts for one in (part, part.flawless())]
    images = [render_part(one, size=bundle.image.spec.image_size)[0] for one in variants]
    scores = score_parts(bundle, variants, images)
    damaged = torch.tensor([one.defect is not None for one in variants])
    group = [novelty(part.kind, str(part.defect)) for part in parts for _ in range(2)]
    results = {}
    for name in NOVELTIES:
        rows = torch.tensor([one == name for one in group])
        results[f"damage AUROC, {name}"] = compute_auroc(scores[rows], damaged[rows])
    cut = min(700, len(variants) // 2)
    flags = damaged.tolist()
    results["thumbnail guard"] = thumbnail_auroc(images[:cut], flags[:cut], images[cut:], flags[cut:])
    return results


def score_world(bundle: Bundle, seed: int, *, scenes: int, parts: int) -> dict[str, float]:
    """Return every metric on the world of one seed."""
    size = bundle.image.spec.image_size

    def draw_scene(index: int) -> tuple[Image.Image, str]:
        number, scene = index, sample_scene(seed + 500, index)
        while len(scene.things) > 1:  # draw again until the scene has one thing
            number += 10_000
            scene = sample_scene(seed + 500, number)
        return render(scene, size=size), scene.things[0].kind

    def draw_part(index: int) -> tuple[Image.Image, str]:
        part = sample_part(seed + 500, index).flawless()
        return render_part(part, size=size)[0], part.kind

    return {
        **score_retrieval(bundle, seed, scenes),
        "kind, scenes": score_kinds(bundle, parts // 2, draw_scene, SCENE_PROMPTS),
        "kind, parts": score_kinds(bundle, parts // 2, draw_part, PART_PROMPTS),
        **score_damage(bundle, seed, parts),
    }


def main() -> None:
    """Score the worlds of all seeds; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=1000)
    options = parser.parse_args()
    bundle = load_clip(options.model, image_size=options.image_size)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    results = [score_world(bundle, seed, scenes=options.scenes, parts=options.parts) for seed in seeds]
    rows = [
        {"what": name, "mean": statistics.mean(one[name] for one in results)}
        | {f"seed {seed}": one[name] for seed, one in zip(seeds, results, strict=True)}
        for name in results[0]
    ]
    report(
        "tiny", rows, note=f"{options.scenes} scenes, {options.parts} parts per seed, {bundle.image.spec.image_size} px"
    )


if __name__ == "__main__":
    main()
