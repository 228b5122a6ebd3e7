"""A real Qwen2.5-0.5B that describes real photographs: adapters and a projector on frozen DINOv2 features.

    uv run python benchmarks/edgeglass_vlm_captions.py                        # bf16; about 25 minutes of one core
    uv run python benchmarks/edgeglass_vlm_captions.py --quantization 4bit
    uv run python benchmarks/edgeglass_vlm_captions.py --quick                # a minute: does it run

One epoch over the training images of the Karpathy set, 20 of which select nothing but show the validation loss. The
projector starts from the words of the captions (`prefix.start=words`); `--start random` shows what that is worth. The
201 test images are scored once, after training:

- the loss of each image's first caption after the right image and after another one (the next of the set), as a paired
  difference with its 95 % bootstrap interval over images: does the model look at the image at all;
- CIDEr and BLEU-4 of greedy captions, beside those of a caption taken from the nearest training image by DINOv2's
  pooled features: of its five the one that agrees best with the other four.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import report
from torch.nn.functional import normalize

from clip_common.config import load_config
from clip_common.features import FeatureCache
from clip_common.reporting import silent
from edgeglass.config import VlmConfig
from edgeglass.data.conversations import Conversation, read_conversations
from edgeglass.scoring.captions import bleu, cider
from edgeglass.scoring.vlm_score import answer_questions, list_questions, swap_images
from edgeglass.training.vlm_experiment import prepare_split, train_vlm
from edgeglass.vlm.vlm import VLM

ASSETS = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets"))
DATA = Path(os.environ.get("CLIP_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "assets" / "data"))
SHOWN = 5
"""Captions that are printed."""


def read_config(options: argparse.Namespace) -> VlmConfig:
    """Return the configuration: 16 image tokens, all five captions of an image, one epoch."""
    overrides = [
        f"data.root={options.captions}",
        "data.hold_out=20",
        "data.batch_size=2",
        "data.row_length=256",
        f"prefix.name={ASSETS / 'dinov2'}",
        "prefix.image_size=224",
        "prefix.merge=4",
        "prefix.projector=linear",
        f"prefix.start={options.start}",
        "prefix.lr=2e-5",
        f"decoder.name={ASSETS / 'qwen'}",
        f"decoder.quantization={options.quantization}",
        "decoder.lora.r=16",
        "decoder.lora.alpha=32",
        "answer.max_new_tokens=24",
        "optim.lr=2e-4",
        "optim.warmup_epochs=0.1",
        "trainer.max_epochs=1",
        "trainer.devices=cpu",
        f"trainer.precision={options.precision}",
        f"runs={options.runs}",
        f"name=captions-{options.quantization}-{options.start}",
        *(["trainer.fast_dev_run=true"] if options.quick else []),
    ]
    return load_config(VlmConfig, overrides=overrides, package="edgeglass")


@torch.no_grad()
def measure_losses(vlm: VLM, conversations: list[Conversation], *, cache: FeatureCache) -> np.ndarray:
    """Return the loss of each conversation's answers (S,)."""
    split = prepare_split(vlm, conversations, cache=cache, reporter=silent, name="test")
    losses = []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=vlm.config.trainer.precision != "32-true"):
        for start in range(0, len(conversations), 8):
            batch = split.batch(range(start, min(start + 8, len(conversations))), row_length=400).to(vlm.device)
            losses.append(vlm.model(batch.rows, batch.images).losses_S.float())
    return torch.cat(losses).numpy()


def paired_difference(first_S: np.ndarray, second_S: np.ndarray, *, samples: int = 2000) -> tuple[float, float, float]:
    """Return the mean of second - first, and its 95 % bootstrap interval over images."""
    difference_S = second_S - first_S
    drawn = np.random.default_rng(0).integers(len(difference_S), size=(samples, len(difference_S)))
    low, high = np.percentile(difference_S[drawn].mean(axis=1), [2.5, 97.5])
    return float(difference_S.mean()), float(low), float(high)


def take_nearest(vlm: VLM, train: list[Conversation], test: list[Conversation], *, cache: FeatureCache) -> list[str]:
    """Return a training caption for each test image: of the image nearest by mean DINOv2 tokens, the one that agrees
    best with its others."""
    encoder = vlm.model.prefix.encoder
    images = list(dict.fromkeys(one.image for one in train if one.image is not None))
    captions = {image: [one.turns[0].answer for one in train if one.image == image] for image in images}
    pooled = [
        normalize(torch.stack([tokens.float().mean(dim=0) for tokens in cache.sequences(encoder, sources)]), dim=-1)
        for sources in (images, [one.image for one in test if one.image is not None])
    ]
    nearest = (pooled[1] @ pooled[0].T).argmax(dim=1).tolist()
    every = [(image, place) for image in images for place in range(len(captions[image]))]
    scores = cider(
        [captions[image][place] for image, place in every],
        [[text for other, text in enumerate(captions[image]) if other != place] for image, place in every],
    )
    best: dict[Any, tuple[float, str]] = {}
    for (image, place), value in zip(every, scores, strict=True):
        if image not in best or value > best[image][0]:
            best[image] = (value, captions[image][place])
    return [best[images[row]][1] for row in nearest]


def main() -> None:
    """Train, score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", choices=["none", "4bit"], default="none")
    parser.add_argument("--start", choices=["words", "random"], default="words")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--captions", type=Path, default=DATA / "captions")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--quick", action="store_true", help="one step, eight test images")
    options = parser.parse_args()
    config = read_config(options)
    start = time.perf_counter()
    run = train_vlm(config).run
    minutes = (time.perf_counter() - start) / 60
    vlm = VLM.from_pretrained(run.path, device="cpu")
    cache = FeatureCache(config.cache_folder / "features")
    sets = read_conversations(config.data)
    asked = list_questions(sets.splits["test"])[: 8 if options.quick else None]
    right = measure_losses(vlm, [one.conversation for one in asked], cache=cache)
    swapped = measure_losses(vlm, [one.conversation for one in swap_images(asked)], cache=cache)
    mean, low, high = paired_difference(right, swapped)
    captions = answer_questions(vlm, asked, cache=cache, reporter=silent)
    other = answer_questions(vlm, swap_images(asked), cache=cache, reporter=silent)
    taken = take_nearest(vlm, sets.splits["train"], [one.conversation for one in asked], cache=cache)
    references = [one.turn.references for one in asked]
    rows = [
        {"captions": name, "CIDEr": float(cider(texts, references).mean()), "BLEU-4": bleu(texts, references)[3]}
        for name, texts in (
            ("the model", captions),
            ("the model, another image", other),
            ("caption of the nearest training image", taken),
        )
    ]
    for one, caption in list(zip(asked, captions, strict=True))[:SHOWN]:
        print(f"{one.conversation.name}: {caption}  (truth: {one.turn.references[0]})")
    note = (
        f"trained {minutes:.0f} minutes; loss after the right image {right.mean():.3f}, after another one "
        f"{swapped.mean():.3f}: difference {mean:.3f} ({low:.3f} to {high:.3f}) over {len(asked)} images"
    )
    report(f"edgeglass_vlm_captions_{options.quantization}_{options.start}", rows, note=note)


if __name__ == "__main__":
    main()
