"""Losses × presets × seeds: train what is missing, score all of it on one split, and say what differs by how much."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from clip_common.config import load_config
from clip_common.devices import check_one_device, pick_device
from clip_common.features import FeatureCache
from clip_common.metrics import ImageTextResult, Paired, RetrievalResult, paired_bootstrap
from clip_common.plots import Dots
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run, write_atomically
from clip_common.runs.files import write_text
from clip_common.runs.series import Announce, check_choices, split_options, train_member
from clipse.config import CompareConfig, Config, LossConfig
from clipse.data import ImageRecord, read_records
from clipse.models.retrieval import RetrievalModel
from clipse.report.plots import draw_comparison
from clipse.scoring.embedding import EmbeddedPairs, owners
from clipse.scoring.evaluation import chance_rsum, evaluate_pairs
from clipse.scoring.score import evaluate, read_ceiling
from clipse.series.members import check_same_captions, member_config, series_folder
from clipse.training.experiment import train
from clipse.training.features import frozen_features
from clipse.training.losses import build_loss, presets_of

COLUMNS = ("i2t/R@1", "i2t/R@5", "i2t/R@10", "t2i/R@1", "t2i/R@5", "t2i/R@10")


@dataclass(frozen=True)
class Row:
    """One loss, over all seeds.

    Attributes:
        label: As it was asked for, e.g. `sanw_debias:conservative`.
        rsums: rsum of each seed, in the order of the seeds.
        metrics: Mean over the seeds of each metric.
        against: The paired difference of rsum to the first loss, over images and seeds; None for the first itself.
    """

    label: str
    rsums: list[float]
    metrics: dict[str, float]
    against: Paired | None

    @property
    def mean(self) -> float:
        """Mean rsum."""
        return mean(self.rsums)

    @property
    def sd(self) -> float | None:
        """Standard deviation of rsum between seeds; None for one seed."""
        return stdev(self.rsums) if len(self.rsums) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """What `compare` leaves.

    Attributes:
        folder: The comparison's folder; the runs are in `clipse/` in it.
        split: The split that was scored.
        seeds: Of the runs of each loss.
        rows: One a loss, the baseline first.
        images, captions: How many were scored.
        chance: rsum of a random order.
        ceiling: rsum of a reader of the attributes on the procedural world, else None.
        table: The Markdown file.
        plot: The PNG.
    """

    folder: Path
    split: str
    seeds: tuple[int, ...]
    rows: list[Row]
    images: int
    captions: int
    chance: float
    ceiling: float | None
    table: Path
    plot: Path


def resolve_comparison(*, config: str | None, overrides: Sequence[str]) -> tuple[Config, CompareConfig]:
    """The configuration of the runs, and what is compared: `losses=`, `seeds=` and `split=` among the overrides.

    Raises:
        ValueError: An unknown key or a wrong value.
    """
    options, rest = split_options(CompareConfig, overrides, own=("losses", "seeds", "split"))
    return load_config(Config, config=config, overrides=rest, package="clipse"), options


def compare(
    config: Config,
    *,
    losses: Sequence[str],
    seeds: Sequence[int],
    split: str = "val",
    reporter: Reporter = silent,
    announce: Announce = lambda line: None,
) -> Comparison:
    """Train each loss with each seed, score all runs on `split`, and compare them with the first loss.

    Called again it goes on where it was: finished runs are kept, killed ones resumed, more losses and seeds added. The
    weights of each run are selected on `val`, so its scores there flatter all of them alike; `test` is for the end.

    Args:
        config: Of every run, but for the loss and the seed. Parameters of a weighting hold for every loss but `clip`
            and `siglip`. `name` is the comparison's; default: the model and the data.
        losses: `NAME` or `NAME:PRESET` each; the first is the baseline.
        seeds: Seeds of training.
        split: `val` or `test` (`train` says how well the training set was learned).
        reporter: Shows progress of what is not training.
        announce: Told of each run as it begins.

    Raises:
        ValueError: One line: no loss or seed, one twice, an unknown loss or preset, several devices, a folder of that
            name with another configuration, other data than it began with or another process at work in it, and
            whatever `train` refuses.
    """
    losses_of = {label: loss_of(config.loss, label) for label in losses}
    for name, given, example in (("losses", losses, "[clip,sanw_debias]"), ("seeds", seeds, "[13,17,23]")):
        check_choices(name, given, example=example)
    check_one_device(config.trainer, verb="compare")
    splits = read_records(config.data).splits
    records = splits[split]
    if len(records) < 2:
        raise ValueError(f"split={split}: {config.data.root} has {len(records)} image(s) in it, expected at least 2")

    series = series_folder("compare", config)
    with series.locked():
        check_same_captions(series, {name: splits[name] for name in ("train", "val", split)})
        results: dict[str, list[ImageTextResult]] = {label: [] for label in losses}
        total = len(losses) * len(seeds)
        pairs = [(seed, label) for seed in seeds for label in losses]  # seed by seed: what a kill leaves is comparable
        for number, (seed, label) in enumerate(pairs, start=1):
            member = replace(
                member_config(config, series, name=f"{label.replace(':', '-')}-s{seed}"),
                loss=losses_of[label],
                trainer=replace(config.trainer, seed=seed),
            )
            announce(f"{label}, seed {seed} ({number} of {total})")
            run = train_member(series, member, train, reporter=reporter)
            results[label].append(scores(run, member, split, records, reporter=reporter))

        baseline = results[losses[0]]
        rows = [
            Row(
                label=label,
                rsums=[result.metrics["rsum"] for result in found],
                metrics={name: mean(result.metrics[name] for result in found) for name in found[0].metrics},
                against=None if label == losses[0] else paired_bootstrap(found, baseline),
            )
            for label, found in results.items()
        ]
        captions = len(baseline[0].image_of_text)
        comparison = Comparison(
            folder=series.path,
            split=split,
            seeds=tuple(seeds),
            rows=rows,
            images=len(records),
            captions=captions,
            chance=chance_rsum(len(records), captions),
            ceiling=read_ceiling(records).get("rsum"),
            table=series.path / f"comparison-{split}.md",
            plot=series.path / f"comparison-{split}.png",
        )
        write_text(comparison.table, markdown(comparison))
        draw_comparison([dots_of(row) for row in rows], comparison.plot, split=split, seeds=len(seeds))
        summary = {
            row.label: {"rsums": row.rsums, "metrics": row.metrics, "against": row.against and vars(row.against)}
            for row in rows
        }
        series.write_result(series.result | {split: {"seeds": list(seeds), "losses": summary}})
        return comparison


def loss_of(base: LossConfig, label: str) -> LossConfig:
    """The loss that `NAME` or `NAME:PRESET` stands for.

    Raises:
        ValueError: An unknown loss or preset, or parameters that it does not take.
    """
    name, colon, preset = label.partition(":")
    presets = {} if name in ("clip", "siglip") else presets_of(name)
    if colon and preset not in presets:
        known = f"has {', '.join(presets)}" if presets else "is no loss with presets"
        raise ValueError(f"losses: {label}: {name} {known}; write NAME or NAME:PRESET")
    given: dict[str, Any] = {"name": name, "preset": preset or base.preset}
    if name in ("clip", "siglip"):
        given["parameters"] = {}
    loss = replace(base, **given)
    build_loss(loss)
    return loss


def scores(
    run: Run, config: Config, split: str, records: Sequence[ImageRecord], *, reporter: Reporter
) -> ImageTextResult:
    """What a run's best weights reach on a split, kept beside them as scores-SPLIT.npz."""
    file = run.path / f"scores-{split}.npz"
    if not file.exists():
        model = RetrievalModel.from_pretrained(run.path)
        result = scored(model, config, split, records, reporter=reporter)
        columns: dict[str, Any] = {
            f"{way}/{name}": values
            for way, direction in (("i2t", result.image_to_text), ("t2i", result.text_to_image))
            for name, values in direction.per_query.items()
        }
        with write_atomically(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, image_of_text=result.image_of_text, **columns)
    with np.load(file) as kept:
        ways = {
            way: {name.removeprefix(f"{way}/"): kept[name] for name in kept if name.startswith(f"{way}/")}
            for way in ("i2t", "t2i")
        }
        return ImageTextResult(
            image_to_text=RetrievalResult(ways["i2t"]),
            text_to_image=RetrievalResult(ways["t2i"]),
            image_of_text=kept["image_of_text"],
            bootstrap=1000,
            seed=0,
        )


def scored(
    model: RetrievalModel, config: Config, split: str, records: Sequence[ImageRecord], *, reporter: Reporter
) -> ImageTextResult:
    """Scores of a model: through its heads alone where both trunks are locked and their features are at hand."""
    if config.model.kind == "dual":
        cache = FeatureCache(config.cache_folder / "features")
        features = frozen_features(model, {split: records}, config.model, cache=cache, reporter=reporter)
        assert features.texts is not None
        with torch.inference_mode():
            image_ND = model.image_tower.head(features.images[split])
            text_TD = model.text_tower.head(features.texts([text for record in records for text in record.captions]))
        return evaluate_pairs(EmbeddedPairs(image_ND, text_TD, owners(records)), ceiling={}).result
    model.to(pick_device(config.trainer.devices))
    with reporter(f"scoring the {split} split") as progress:
        return evaluate(model, records, batch_size=config.data.batch_size, progress=progress).result


def markdown(comparison: Comparison) -> str:
    """The table, and what it says."""
    head = ["loss", "rsum, mean ± sd", f"minus {comparison.rows[0].label} (95 % interval)", "p"]
    lines = [" | ".join([*head, *COLUMNS]), " | ".join(["---"] * (len(head) + len(COLUMNS)))]
    for row in comparison.rows:
        lines.append(" | ".join([*cells(row), *(f"{row.metrics[name]:.3f}" for name in COLUMNS)]))
    return f"{caption(comparison)}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def cells(row: Row) -> list[str]:
    """Label, rsum, difference and p of a row, as text."""
    spread = "" if row.sd is None else f" ± {row.sd:.1f}"
    against = row.against
    if against is None:
        return [row.label, f"{row.mean:.1f}{spread}", "", ""]
    difference = f"{against.difference:+.1f} ({against.low:+.1f} to {against.high:+.1f})"
    return [row.label, f"{row.mean:.1f}{spread}", difference, f"{against.p:.3f}"]


def dots_of(row: Row) -> Dots:
    """Return a row as the plot shows it: every seed, mean ± sd, and the paired difference with its interval."""
    against = row.against
    return Dots(
        label=row.label,
        values=row.rsums,
        centre=row.mean,
        whisker=None if row.sd is None else (row.mean - row.sd, row.mean + row.sd),
        against=None if against is None else (against.difference, against.low, against.high),
    )


def caption(comparison: Comparison) -> str:
    """What was scored and how, in a few sentences."""
    seeds = comparison.seeds
    count = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"one seed ({seeds[0]})"
    over = "images and seeds" if len(seeds) > 1 else "images only: with one seed nothing is known of the next"
    selected = "; weights were selected on this split" if comparison.split == "val" else ""
    top = f", attribute oracle {comparison.ceiling:.1f}" if comparison.ceiling is not None else ""
    return (
        f"Scored on the {comparison.split} split{selected}: {comparison.images:,} images, {comparison.captions:,} "
        f"captions, {count}. rsum is of 600; chance {comparison.chance:.1f}{top}. "
        f"Differences are paired, their intervals a bootstrap over {over}."
    )
