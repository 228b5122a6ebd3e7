"""Compare losses: train each with each seed, score all runs on one split, and compute paired differences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from clip_common.config import load_config
from clip_common.devices import check_one_device
from clip_common.metrics import ImageTextResult, Paired, RetrievalResult, paired_bootstrap
from clip_common.plots import Dots
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run, write_atomically
from clip_common.runs.files import write_text
from clip_common.runs.series import Announce, check_choices, split_options, train_member
from clip_common.tables import markdown_table
from clipse.config import CompareConfig, Config, LossConfig
from clipse.data import ImageRecord, read_records
from clipse.models.retrieval import RetrievalModel
from clipse.report.plots import draw_comparison
from clipse.scoring.evaluation import compute_chance_rsum
from clipse.scoring.score import read_ceiling, score_split
from clipse.series.members import check_same_captions, member_config, open_series_folder
from clipse.training.experiment import train
from clipse.training.losses import build_loss, list_presets

COLUMNS = ("i2t/R@1", "i2t/R@5", "i2t/R@10", "t2i/R@1", "t2i/R@5", "t2i/R@10")


@dataclass(frozen=True)
class ComparisonRow:
    """One loss, over all seeds.

    Attributes:
        label: The loss as given, e.g. `sanw_debias:conservative`.
        rsums: rsum of each seed, in the order of the seeds.
        metrics: Mean of each metric over the seeds.
        against: Paired difference of rsum to the first loss, over images and seeds; None for the first loss.
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
        """Standard deviation of rsum over the seeds; None for one seed."""
        return stdev(self.rsums) if len(self.rsums) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        folder: The comparison's folder, with the runs in `clipse/`.
        split: The split that was scored.
        seeds: Seeds of training.
        rows: One per loss, the baseline first.
        images, captions: Number of each that was scored.
        chance: Expected rsum of a random ranking.
        ceiling: rsum of the attribute oracle on the procedural world, else None.
        table: The Markdown file.
        plot: The PNG.
    """

    folder: Path
    split: str
    seeds: tuple[int, ...]
    rows: list[ComparisonRow]
    images: int
    captions: int
    chance: float
    ceiling: float | None
    table: Path
    plot: Path


def resolve_comparison(*, config: str | None, overrides: Sequence[str]) -> tuple[Config, CompareConfig]:
    """Return the configuration of the runs, and the options `losses=`, `seeds=` and `split=` among the overrides.

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

    A repeated call resumes: finished runs are kept, killed runs are resumed, and losses and seeds may be added. Each
    run's weights are selected on `val`, so scores there are too high, for all losses alike; score `test` once, at the
    end.

    Args:
        config: Configuration of every run, apart from the loss and the seed. Parameters of a weighting apply to every
            loss but `clip` and `siglip`. `name` names the comparison; default: the model and the data.
        losses: `NAME` or `NAME:PRESET` each; the first is the baseline.
        seeds: Seeds of training.
        split: `val`, `test` or `train`.
        reporter: Shows progress of the work around training.
        announce: Called with one line as each run begins.

    Raises:
        ValueError: One line: no loss or seed, one given twice, an unknown loss or preset, several devices, a comparison
            of that name with another configuration, with changed data or in use by another process, or any error of
            `train`.
    """
    losses_of = {label: parse_loss(config.loss, label) for label in losses}
    for name, given, example in (("losses", losses, "[clip,sanw_debias]"), ("seeds", seeds, "[13,17,23]")):
        check_choices(name, given, example=example)
    check_one_device(config.trainer, verb="compare")
    splits = read_records(config.data, cache=config.cache_folder).splits
    records = splits[split]
    if len(records) < 2:
        raise ValueError(f"split={split}: {config.data.root} has {len(records)} image(s) in it, expected at least 2")

    series = open_series_folder("compare", config)
    with series.locked():
        check_same_captions(series, {name: splits[name] for name in ("train", "val", split)})
        results: dict[str, list[ImageTextResult]] = {label: [] for label in losses}
        total = len(losses) * len(seeds)
        pairs = [(seed, label) for seed in seeds for label in losses]  # seed by seed: runs before a kill are comparable
        for number, (seed, label) in enumerate(pairs, start=1):
            member = replace(
                member_config(config, series, name=f"{label.replace(':', '-')}-s{seed}"),
                loss=losses_of[label],
                trainer=replace(config.trainer, seed=seed),
            )
            announce(f"{label}, seed {seed} ({number} of {total})")
            run = train_member(series, member, train, reporter=reporter)
            results[label].append(score_member(run, member, split, records, reporter=reporter))

        baseline = results[losses[0]]
        rows = [
            ComparisonRow(
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
            chance=compute_chance_rsum(len(records), captions),
            ceiling=read_ceiling(records).get("rsum"),
            table=series.path / f"comparison-{split}.md",
            plot=series.path / f"comparison-{split}.png",
        )
        write_text(comparison.table, to_markdown(comparison))
        draw_comparison([to_dots(row) for row in rows], comparison.plot, split=split, seeds=len(seeds))
        summary = {
            row.label: {"rsums": row.rsums, "metrics": row.metrics, "against": row.against and vars(row.against)}
            for row in rows
        }
        series.write_result(series.result | {split: {"seeds": list(seeds), "losses": summary}})
        return comparison


def parse_loss(base: LossConfig, label: str) -> LossConfig:
    """Return the loss configuration of `NAME` or `NAME:PRESET`, with the other fields of `base`.

    Raises:
        ValueError: An unknown loss or preset, or parameters that it does not take.
    """
    name, colon, preset = label.partition(":")
    presets = {} if name in ("clip", "siglip") else list_presets(name)
    if colon and preset not in presets:
        known = f"has {', '.join(presets)}" if presets else "has no presets"
        raise ValueError(f"losses: {label}: {name} {known}; write NAME or NAME:PRESET")
    given: dict[str, Any] = {"name": name, "preset": preset or base.preset}
    if name in ("clip", "siglip"):
        given["parameters"] = {}
    settings = replace(base, **given)
    build_loss(settings)  # raises if the loss cannot be built
    return settings


def score_member(
    run: Run, config: Config, split: str, records: Sequence[ImageRecord], *, reporter: Reporter
) -> ImageTextResult:
    """Score a run's best weights on a split, or read the scores that scores-SPLIT.npz in the run folder keeps."""
    file = run.path / f"scores-{split}.npz"
    if not file.exists():
        model = RetrievalModel.from_pretrained(run.path)
        result = score_split(
            model,
            records,
            config,
            name=f"scoring the {split} split",
            devices=config.trainer.devices,
            reporter=reporter,
        ).result
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


def to_markdown(comparison: Comparison) -> str:
    """Return the caption and the table as Markdown."""
    head = ["loss", "rsum, mean ± sd", f"minus {comparison.rows[0].label} (95 % interval)", "p"]
    rows = [[*format_row(row), *(f"{row.metrics[name]:.3f}" for name in COLUMNS)] for row in comparison.rows]
    return f"{describe(comparison)}\n\n{markdown_table([*head, *COLUMNS], rows)}\n"


def format_row(row: ComparisonRow) -> list[str]:
    """Return label, rsum, difference and p of a row, as text."""
    spread = "" if row.sd is None else f" ± {row.sd:.1f}"
    against = row.against
    if against is None:
        return [row.label, f"{row.mean:.1f}{spread}", "", ""]
    difference = f"{against.difference:+.1f} ({against.low:+.1f} to {against.high:+.1f})"
    return [row.label, f"{row.mean:.1f}{spread}", difference, f"{against.p:.3f}"]


def to_dots(row: ComparisonRow) -> Dots:
    """Return a row as the plot shows it: every seed, mean ± sd, and the paired difference with its interval."""
    against = row.against
    return Dots(
        label=row.label,
        values=row.rsums,
        centre=row.mean,
        whisker=None if row.sd is None else (row.mean - row.sd, row.mean + row.sd),
        against=None if against is None else (against.difference, against.low, against.high),
    )


def describe(comparison: Comparison) -> str:
    """Return two sentences that say what was scored and how."""
    seeds = comparison.seeds
    count = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"one seed ({seeds[0]})"
    over = "images and seeds" if len(seeds) > 1 else "images only; one seed says nothing about the spread between seeds"
    selected = "; weights were selected on this split" if comparison.split == "val" else ""
    top = f", attribute oracle {comparison.ceiling:.1f}" if comparison.ceiling is not None else ""
    return (
        f"Scored on the {comparison.split} split{selected}: {comparison.images:,} images, {comparison.captions:,} "
        f"captions, {count}. rsum is of 600; chance {comparison.chance:.1f}{top}. "
        f"Differences are paired, their intervals a bootstrap over {over}."
    )
