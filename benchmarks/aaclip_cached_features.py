"""Stage 1 with cached features: an epoch from disk, against one of texts and losses alone, and one without a cache.

    uv run python benchmarks/aaclip_cached_features.py            # 288 images of twelve kinds: some minutes
    uv run python benchmarks/aaclip_cached_features.py --quick    # 20 images of two kinds: does it run

An epoch has the steps of training without Lightning: loader, prompts through the text tower, maps, losses, backward,
Adam. The arm that it is compared with has the same batches and patches in memory as float32. The preset of the tiny
CLIP encodes all 112 prompts of each kind in every step; one kind with 16 prompts is the hardest case for a cache.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from _measure import alternate, report
from torch import Tensor

from aaclip.data import AnomalyDataset, Batch
from aaclip.models.backbone import load_backbone, make_model
from aaclip.models.prompts import load_prompts
from aaclip.training.experiment import read_training_records, resolve
from aaclip.training.features import FrozenViews
from aaclip.training.fits import make_dataset
from aaclip.training.modules import StageData, TextStage
from clip_common.synthetic import write_mvtec
from clip_common.synthetic.parts import HELD_KINDS
from clip_common.synthetic.scenes import KINDS

KNOWN = tuple(kind for kind in KINDS if kind not in HELD_KINDS)
BAR = 1.15


class InMemory:
    """Patches of each batch as float32, by its indices."""

    def __init__(self, views: FrozenViews, batches: Iterable[Batch]) -> None:
        self.kept = {tuple(batch.indices_B.tolist()): views.patches(batch.indices_B, epoch=0) for batch in batches}

    def patches(self, indices_B: Tensor, *, epoch: int) -> list[Tensor]:
        return self.kept[tuple(indices_B.tolist())]


class Epochs:
    """One stage 1, run on batches and patches from any source.

    Args:
        root: An MVTec tree.
        overrides: Of the configuration `tiny`.
    """

    def __init__(self, root: Path, *overrides: str) -> None:
        self.config = resolve(config="tiny", overrides=[f"data.root={root}", *overrides])
        records = read_training_records(self.config)
        self.model = make_model(load_backbone(self.config.backbone), self.config)
        self.plain = make_dataset(self.model, records, self.config, colour=False)
        self.views = FrozenViews(
            root.parent / "cache", self.plain, self.model, views=self.config.stages.text.cache_features
        )
        self.stage = TextStage(
            self.model, self.config.stages.text, self.config.loss, prompts=load_prompts(self.config.prompts)
        )
        self.stage.log = self.stage.log_dict = lambda *_, **__: None  # there is no trainer to log to
        self.optimizer = self.stage.configure_optimizers()
        self.batches = list(self.loader(self.views))
        self.in_memory = InMemory(self.views, self.batches)

    def loader(self, dataset: AnomalyDataset | FrozenViews) -> Iterable[Batch]:
        """Return training's own loader; iterated again it yields the same epoch."""
        data = StageData(
            dataset, batch_size=self.config.stages.text.batch_size, seed=self.config.trainer.seed, workers=0
        )
        data.trainer = SimpleNamespace(global_rank=0, world_size=1)
        return data.train_dataloader()

    def epoch(self, batches: Iterable[Batch], views: Any) -> Callable[[], list[float]]:
        """Return a function that trains for an epoch and returns the losses."""

        def run() -> list[float]:
            self.stage.views = views
            losses = []
            for number, batch in enumerate(batches):
                self.optimizer.zero_grad()
                loss = self.stage.training_step(batch, number)
                loss.backward()
                self.optimizer.step()
                losses.append(loss.item())
            return losses

        return run

    def check_equal(self) -> None:
        """Check that both arms see the same patches, masks and labels."""
        cached = [self.views.patches(batch.indices_B, epoch=0) for batch in self.loader(self.views)]
        for patches, own in zip(cached, self.in_memory.kept.values(), strict=True):
            assert all(torch.equal(one, other) for one, other in zip(patches, own, strict=True))
        for one, other in zip(self.loader(self.views), self.batches, strict=True):
            assert torch.equal(one.masks_BHW, other.masks_BHW)
            assert one.class_names == other.class_names


def make_rows(name: str, epochs: Epochs, *, pairs: int, plain: int) -> list[dict[str, object]]:
    """Time against texts and losses alone, and against an epoch that computes its features."""
    epochs.check_equal()
    cached = epochs.epoch(epochs.loader(epochs.views), epochs.views)
    bare = alternate(cached, epochs.epoch(epochs.batches, epochs.in_memory), pairs=pairs, warmup=1)
    computed = alternate(cached, epochs.epoch(epochs.loader(epochs.plain), None), pairs=plain, warmup=1)
    images, side = len(epochs.views), epochs.plain.size
    common = {"stage 1": name, "images": images, "pixels": side}
    return [
        common | {"beside": what, "cached s": timing.ours_s, "beside s": timing.theirs_s, "ratio": timing.ratio}
        for what, timing in (("texts and losses alone", bare), ("features computed", computed))
    ]


def main() -> None:
    """Draw, cache, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds, good, damaged, pairs = (KNOWN[:2], 4, 1, 2) if options.quick else (KNOWN, 12, 2, options.pairs)
    with tempfile.TemporaryDirectory() as place:
        root = write_mvtec(Path(place) / "parts", kinds=kinds, train=0, good=good, damaged=damaged)
        one = write_mvtec(Path(place) / "one", kinds=kinds[:1], train=0, good=len(kinds) * good, damaged=damaged)
        plain = max(1, pairs // 3)
        rows = make_rows(f"{len(kinds)} kinds, 112 prompts each", Epochs(root), pairs=pairs, plain=plain)
        rows += make_rows("1 kind, 16 prompts", Epochs(one, "prompts.set=compact"), pairs=2 * pairs, plain=plain)
    report("aaclip_cached_features", rows, note=f"the tiny CLIP and its preset; bar: {BAR} beside texts and losses")


if __name__ == "__main__":
    main()
