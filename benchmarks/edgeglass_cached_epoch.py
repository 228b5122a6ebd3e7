"""A training epoch on cached features of frozen encoders, against the same epoch that computes them anew.

    uv run python benchmarks/edgeglass_cached_epoch.py            # 64 real images: DINOv2, MiniLM, MLP projectors
    uv run python benchmarks/edgeglass_cached_epoch.py --quick    # 16 images, one pair of timings

Both arms run the same batches with the same captions, and their losses are asserted to agree. Caching itself costs one
pass of the encoders, once. Aim: at least 10 times as fast.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from _measure import alternate, report

from clip_common.config import load_config
from clip_common.features import FeatureCache
from clip_common.reporting import silent
from clip_common.training import build_optimizer
from edgeglass.config import Config
from edgeglass.data import Sample, read_samples
from edgeglass.data.items import collect_items
from edgeglass.models.building import build_model
from edgeglass.scoring.features import read_inputs
from edgeglass.training.batches import SplitData
from edgeglass.training.losses import build_loss

ASSETS = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets"))
CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data" / "captions"
BATCH = 16


class Arm:
    """A model and its training samples, with inputs from the cache or read anew.

    Args:
        config: Configuration with frozen encoders.
        samples: Training samples.
        cache: For features.
        cached: Whether to read features from it.
    """

    def __init__(self, config: Config, samples: list[Sample], cache: FeatureCache, *, cached: bool) -> None:
        self.model = build_model(config, loss=build_loss(config)).train()
        self.optimizer = build_optimizer(self.model, config.optim)
        sources = {
            modality: read_inputs(
                self.model.encoder_of(modality), items, trains=not cached, cache=cache, reporter=silent, what=""
            )
            for modality, items in collect_items(samples).items()
        }
        self.data = SplitData(samples, sources, seed=0)
        self.epoch = 0

    def run_epoch(self) -> list[float]:
        """Train the heads for one epoch; return the loss of each step."""
        captions_N = self.data.choose_captions(self.epoch)
        self.epoch += 1
        losses = []
        for start in range(0, len(self.data.samples), BATCH):
            batch = self.data.batch(range(start, start + BATCH), captions_N)
            found = self.model(
                batch.inputs["image"], batch.inputs["text"], captions=batch.captions_B, groups=batch.groups_B
            )
            self.optimizer.zero_grad()
            found.loss.backward()
            self.optimizer.step()
            losses.append(found.loss.item())
        return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, default=CAPTIONS)
    parser.add_argument("--quick", action="store_true", help="16 images, one pair of timings")
    options = parser.parse_args()
    for part in (ASSETS / "dinov2", ASSETS / "minilm", options.captions):
        if not part.exists():
            parser.error(f"{part} is absent: this benchmark needs real weights and images, see CONTRIBUTING.md")
    overrides = [
        f"data.root={options.captions}",
        f"encoders.vision.name={ASSETS / 'dinov2'}",
        f"encoders.text.name={ASSETS / 'minilm'}",
        "mrl.width=512",
        "mrl.dims=[256,128,64]",
    ]
    config = load_config(Config, config="mlp_bimodal", overrides=overrides, package="edgeglass")
    samples = read_samples(config.data).splits["train"][: 16 if options.quick else 64]
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder))
        cached, anew = (Arm(config, samples, cache, cached=choice) for choice in (True, False))
        torch.testing.assert_close(cached.run_epoch(), anew.run_epoch(), rtol=1e-4, atol=1e-4)
        pairs = 1 if options.quick else 7
        timing = alternate(cached.run_epoch, anew.run_epoch, pairs=pairs, warmup=0)
    row = {"cached_s": timing.ours_s, "anew_s": timing.theirs_s, "anew / cached": 1 / timing.ratio}
    report("edgeglass_cached_epoch", [row], note=f"an epoch of {len(samples)} images in batches of {BATCH}")
