"""A small bundle of plain torch trunks, and a process that fills a feature cache. Run by test_features_cache.py.

python toy_features.py CACHE IMAGES [--kill-at N]      # SIGKILL itself once N images are done
"""

import argparse
import os
import signal
from pathlib import Path

import torch
from torch import nn

from clip_common.backbones import Bundle, Preprocess, Spec, TextTower, VisionOutput, VisionTower
from clip_common.backbones.trunk import TextTrunk, VisionTrunk
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
    spec = Spec("dual", "toy", None, 16, 4, (4, 4), 8, 8, 2, 6, 0, None, None, "0" * 64, {})
    preprocess = Preprocess(size=16)
    return Bundle(image_tower, text_tower, preprocess, preprocess, ToyTokenizer(), spec, 0.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--kill-at", type=int, default=None)
    options = parser.parse_args()

    def progress(done, total):
        if options.kill_at is not None and done >= options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    cache.SHARD_ROWS = 8
    images = sorted(options.images.glob("*.png"))
    FeatureCache(options.cache).image_features(toy_bundle(), images, batch_size=4, progress=progress)
