"""A small bundle of plain torch trunks, and a process that fills a feature cache, for the tests of features.

python toy_features.py CACHE FOLDER [--kill-at N]      # SIGKILL itself once N images or sounds are done
"""

import argparse
import os
import signal
from pathlib import Path

import torch
from torch import nn

from clip_common.backbones import (
    Bundle,
    BundleSpec,
    Encoder,
    ImageEncoder,
    ImageFeed,
    ImageSpec,
    Preprocess,
    Spec,
    TextEncoder,
    TextFeed,
    TextSpec,
    TextTower,
    Tower,
    VisionOutput,
    VisionTower,
)
from clip_common.backbones.trunk import TextTrunk, TokenSequence, Trunk, VisionTrunk
from clip_common.features import FeatureCache, cache


class ToyVision(VisionTrunk):
    """Two blocks over 4×4 patches; batch norm and dropout show whether it runs in eval mode."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.5)) for _ in range(2)])
        self.norm = nn.BatchNorm1d(8)
        self.runs = []

    def forward(self, images, layers=()):
        self.runs.append(len(images))
        tokens, outputs = self.patches(images).flatten(2).transpose(1, 2), {}
        for number, block in enumerate(self.layers, start=1):
            tokens = outputs[number] = tokens + block(tokens)
        return VisionOutput(self.norm(tokens.mean(dim=1)), tokens, {number: outputs[number] for number in layers})


class ToyText(TextTrunk):
    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(256, 6, padding_idx=0)
        self.runs = []

    def forward(self, tokens):
        self.runs.append(len(tokens))
        return self.letters(tokens).sum(dim=1)


class ToyTokenizer:
    key = "bytes"

    def __call__(self, texts):
        rows = [torch.tensor(list(text.encode()) or [0]) for text in texts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def save(self, folder):
        pass


def toy_bundle(seed=0):
    torch.manual_seed(seed)
    image_tower, text_tower = VisionTower(ToyVision()), TextTower(ToyText())
    image_tower.freeze_trunk()
    text_tower.freeze_trunk()
    sizes = {"name": "toy", "fingerprint": "0" * 64}
    preprocess = Preprocess(size=16)
    image_spec = ImageSpec(width=8, depth=2, embed_dim=8, image_size=16, patch_size=4, grid=(4, 4), **sizes)
    text_spec = TextSpec(width=6, depth=0, embed_dim=6, context_length=99, **sizes)
    return Bundle(
        image=ImageEncoder(image_tower, ImageFeed(preprocess), image_spec),
        text=TextEncoder(text_tower, TextFeed(ToyTokenizer()), text_spec),
        train_preprocess=preprocess,
        spec=BundleSpec(kind="dual", pretrained=None, activation=None, config={}, **sizes),
        logit_scale=0.0,
    )


class ToyAudio(Trunk):
    """The mean over 4 numbers a sound, through a matrix; sounds of a batch are padded, and a mask says where."""

    width = 5

    def __init__(self):
        super().__init__()
        self.samples = nn.Linear(4, 5)
        self.runs = []

    def features(self, sounds):
        self.runs.append(len(sounds["samples"]))
        weights = sounds["mask"][..., None].float()
        return (self.samples(sounds["samples"]) * weights).sum(dim=1) / weights.sum(dim=1)

    def sequence(self, sounds):
        self.runs.append(len(sounds["samples"]))
        return TokenSequence(self.samples(sounds["samples"]), sounds["mask"])


class ToySounds:
    """A feature extractor: the bytes of a file, in frames of 4."""

    def __init__(self, gain=1.0):
        self.gain = gain

    @property
    def key(self):
        return f"frames of 4, gain {self.gain}"

    @property
    def example(self):
        return torch.zeros(1, 4)

    def load(self, source, *, name):
        if len(source) % 4:
            raise ValueError(f"{name}: {len(source)} bytes are no frames of 4")
        return self.gain * torch.tensor(list(source)).float().reshape(-1, 4) / 255

    def batch(self, items):
        masks = [torch.ones(len(item), dtype=torch.bool) for item in items]
        pad = nn.utils.rnn.pad_sequence
        return {"samples": pad(items, batch_first=True), "mask": pad(masks, batch_first=True)}


def toy_audio(seed=0, gain=1.0):
    torch.manual_seed(seed)
    tower = Tower(ToyAudio(), nn.Linear(5, 8))
    tower.freeze_trunk()
    spec = Spec(kind="audio", name="toy", width=5, depth=0, embed_dim=8, fingerprint="0" * 64)
    return Encoder(tower, ToySounds(gain), spec)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int, default=None)
    options = parser.parse_args()

    def progress(done, total):
        if options.kill_at is not None and done >= options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    cache.SHARD_ROWS = 8
    store, images = FeatureCache(options.cache), sorted(options.folder.glob("*.png"))
    if images:
        store.features(toy_bundle().image, images, batch_size=4, progress=progress)
    else:
        store.sequences(toy_audio(), sorted(options.folder.glob("*.raw")), batch_size=4, progress=progress)
