"""`videoclip ablate`: fill the experiment table: rows B0 to B4, C1 to C3, wrong maps, and no map in the test."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

from clip_common.config import apply_overrides, load_config
from clip_common.devices import check_one_device
from clip_common.metrics import Paired
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.files import write_text
from clip_common.runs.series import (
    Announce,
    check_choices,
    check_same_data,
    member_config,
    open_series,
    split_options,
    train_member,
)
from clip_common.tables import markdown_table
from videoclip.config import AblateConfig, Config
from videoclip.config.switches import ClipFacts, check_switches, find_idle
from videoclip.data import Split
from videoclip.data.clip_set import load_clip_set
from videoclip.report.plots import draw_ablation
from videoclip.scoring.evaluation import paired_bootstrap
from videoclip.scoring.predictions import Predictions, pool_predictions
from videoclip.scoring.score import result_name, score
from videoclip.training.experiment import check_setup, check_sizes, train

Table = Literal["all", "B", "C", "controls", "nomap"]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        id: Name as in the original table; controls and further rows have their own names.
        what: The method, in words.
        switches: Overrides of the configuration that define the method.
        run_of: Row whose runs it tests; None trains its own.
        tested: Further overrides of its test.
    """

    id: str
    what: str
    switches: tuple[str, ...]
    run_of: str | None = None
    tested: tuple[str, ...] = ()


SIGMOID = "model.map_guided_sigmoid_gate"
GUIDED = ("model.map_guided=true", "model.map_guided_type=spatiotemporal", f"{SIGMOID}=false")
FULL = (*GUIDED, "model.lambda_token=0")
PUBLISHED = ("model.align_pool=mean", "model.align_tokens=gated")
TRAINED = (
    Row("B0", "cross-entropy only", ("model.map_guided=false", "loss.clip_weight=0", "model.lambda_token=0")),
    Row("B1", "CLIP alignment only", ("model.map_guided=false", "model.lambda_token=0")),
    Row("B2", "map-guided pooling only", (*GUIDED, "loss.clip_weight=0", "model.lambda_token=0")),
    Row("B3", "full method", FULL),
    Row("B4", "full method and token loss", GUIDED),
    Row("C1", "channel gating", ("model.map_guided=true", "model.map_guided_type=channel", "model.lambda_token=0")),
    Row(
        "C2",
        "weighted pooling, no gate",
        ("model.map_guided=true", "model.map_guided_type=weighted_pool", "model.lambda_token=0"),
    ),
    Row("C3 linear", "linear gate (the run of B3)", FULL, run_of="B3"),
    Row("C3 sigmoid", "sigmoid gate", (*GUIDED[:2], f"{SIGMOID}=true", "model.lambda_token=0")),
    Row("published", "full method, aligned as published: gated tokens, their mean", (*FULL, *PUBLISHED)),
)
HIDDEN = tuple(
    Row(f"{row.id} hidden", "the same, map hidden from guidance", row.switches, row.id, ("data.control=hidden",))
    for row in TRAINED
    if "model.map_guided=true" in row.switches and row.run_of is None
)
CONTROLS = (
    Row("shuffled", "full method, another subject's maps", (*FULL, "data.control=shuffled")),
    Row("centre", "full method, a Gaussian in the middle", (*FULL, "data.control=centre")),
    Row("uniform", "full method, the same map everywhere", (*FULL, "data.control=uniform")),
    Row("random", "full method, noise for maps", (*FULL, "data.control=random")),
    Row("absent", "full method, no map in the test", FULL, run_of="B3", tested=("data.control=absent",)),
)
PREDICTED = (*GUIDED, "model.lambda_token=0", "loss.clip_weight=0", "model.guide=predicted")
MAPLESS = (
    Row("predicted", "guided by a predicted map", PREDICTED, tested=("data.control=hidden",)),
    Row(
        "predicted shuffled",
        "the same, trained on another subject's maps",
        (*PREDICTED, "data.control=shuffled"),
        tested=("data.control=hidden",),
    ),
)
ROWS = (*(row for own in TRAINED for row in (own, *(h for h in HIDDEN if h.run_of == own.id))), *CONTROLS, *MAPLESS)
TABLES: dict[str, tuple[str, ...]] = {
    "B": ("B0", "B1", "B2", "B2 hidden", "B3", "B3 hidden", "B4", "B4 hidden", "published", "published hidden"),
    "C": ("B0", "C1", "C1 hidden", "C2", "C2 hidden", "C3 linear", "C3 sigmoid", "C3 sigmoid hidden"),
    "controls": ("B0", "B3", *(row.id for row in CONTROLS)),
    "nomap": ("B0", "B2", "B2 hidden", *(row.id for row in MAPLESS)),
    "all": tuple(row.id for row in ROWS if row not in MAPLESS),
}
"""Rows of each `--table`; the others are compared with the first."""
COLUMNS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "retrieval_r1_v2a": "R@1 v→a",
    "retrieval_r5_v2a": "R@5 v→a",
    "retrieval_r1_a2v": "R@1 a→v",
    "retrieval_r5_a2v": "R@5 a→v",
    "retrieval_r1_v2a_regions": "R@1 v→a, regions",
    "align_sim_gap": "align gap",
    "align_sim_corr": "align corr",
    "map_corr": "map corr",
    "map_pointing": "map pointing",
}
"""Metric → column: classification, D1 (retrieval), D2 (similarity), and agreement of the model's own map."""
FIGURE = "macro_f1"
"""Metric by which rows are compared."""


@dataclass(frozen=True)
class Result:
    """A row over all seeds.

    Attributes:
        row: The row.
        metrics: Metrics of each seed's test subjects, in the order of the seeds.
        against: Paired difference in macro F1 to the first row; None for the first row itself.
    """

    row: Row
    metrics: list[dict[str, float]]
    against: Paired | None

    @property
    def aligned(self) -> bool:
        """Whether it was trained to align, so that retrieval and similarity are meaningful."""
        return "loss.clip_weight=0" not in self.row.switches

    def cell(self, name: str, *, spread: bool = True) -> str:
        """Return a metric as mean ± sd, or the mean alone; empty if it is undefined."""
        values = [metrics[name] for metrics in self.metrics if name in metrics]
        if not values or (not self.aligned and name.startswith(("retrieval", "align"))):
            return ""
        return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if spread and len(values) > 1 else "")


@dataclass(frozen=True)
class Ablation:
    """Result of `ablate`.

    Attributes:
        folder: Folder of the series; its runs are in `videoclip/` inside it.
        seeds: Seeds of each row's runs.
        results: One per row, the baseline first.
        majority: Accuracy and macro F1 of always predicting the most frequent training class, mean over the seeds.
        subjects, clips: Number tested, over all seeds.
        table: The Markdown file.
        plot: The PNG.
        notes: What else to tell a user, one line each.
    """

    folder: Path
    seeds: tuple[int, ...]
    results: list[Result]
    majority: dict[str, float]
    subjects: int
    clips: int
    table: Path
    plot: Path
    notes: list[str]


def resolve_ablation(*, config: str | None, overrides: Sequence[str]) -> tuple[Config, AblateConfig]:
    """Return the configuration of the runs, and the options of the verb (`seeds=` among the overrides).

    Raises:
        ValueError: An unknown key or a wrong value.
    """
    options, rest = split_options(AblateConfig, overrides, own=("seeds",))
    return load_config(Config, config=config, overrides=rest, package="videoclip"), options


def ablate(
    config: Config,
    *,
    table: Table = "all",
    seeds: Sequence[int] = (0, 1, 2),
    reporter: Reporter = silent,
    announce: Announce = lambda line: None,
) -> Ablation:
    """Train each row with each seed, test it on subjects that it never saw, and compare all with the first row.

    Seed s also tests on another part of the subjects, `data.fold` + s, so that results do not depend on the subjects of
    one part. Called again, it continues: finished runs are kept, a killed run is resumed, and more seeds or the rows of
    another table are added.

    Args:
        config: Configuration of every run, apart from the rows' switches. If its token loss has no weight, B4 uses 0.1;
            if its contrastive loss has no weight, 1 is used.
        table: Which rows.
        seeds: Training seeds.
        reporter: Shows progress outside training.
        announce: Called with one line as each run begins.

    Raises:
        ValueError: One line: no seed or a repeated one, several devices, a series of that name with another
            configuration, changed clips, another process at work in it, and whatever `train` refuses.
    """
    check_choices("seeds", seeds, example="[0,1,2]")
    check_one_device(config.trainer, verb="ablate")
    check_setup(config)
    rows = [row for row in ROWS if row.id in TABLES[table]]
    check_rows(rows, config, table=table)
    clips = load_clip_set(config, check=partial(check_rows, rows, config, table=table), reporter=reporter)
    splits = clips.splits(config.data)
    for split in splits:
        check_sizes(split, config)
    name = config.name or Path(str(config.data.root)).resolve().name
    series = open_series("ablate", config, package="videoclip", name=name)
    with series.locked():
        check_same_data(series, list_tested_clips(splits), what="clips or labels")
        predictions: dict[str, list[Predictions]] = {row.id: [] for row in rows}
        metrics: dict[str, list[dict[str, float]]] = {row.id: [] for row in rows}
        pairs = [
            (seed, row) for seed in seeds for row in rows
        ]  # seed by seed, so that an interrupted table is comparable
        for number, (seed, row) in enumerate(pairs, start=1):
            announce(f"{row.id}: {row.what}, seed {seed} ({number} of {len(pairs)})")
            settings = row_config(row, seed, config, splits, series)
            row_predictions, row_metrics = run_row(row, settings, series, reporter=reporter)
            predictions[row.id].append(row_predictions)
            metrics[row.id].append(row_metrics)
        pooled = {name: pool_predictions(parts, clips.records) for name, parts in predictions.items()}
        baseline = rows[0].id
        results = [
            Result(
                row=row,
                metrics=metrics[row.id],
                against=None if row.id == baseline else paired_bootstrap(pooled[row.id], pooled[baseline], key=FIGURE),
            )
            for row in rows
        ]
        ablation = Ablation(
            folder=series.path,
            seeds=tuple(seeds),
            results=results,
            majority={name: mean(m[f"majority_{name}"] for m in metrics[baseline]) for name in ("accuracy", FIGURE)},
            subjects=len(set(pooled[baseline].subject_N.tolist())),
            clips=len(pooled[baseline]),
            table=series.path / f"ablation-{table}.md",
            plot=series.path / f"ablation-{table}.png",
            notes=clips.describe_cache(),
        )
        write_text(ablation.table, render_markdown(ablation, config))
        named = {f"{result.row.id}  {result.row.what}": result for result in results}
        draw_ablation(
            {name: [figures[FIGURE] for figures in result.metrics] for name, result in named.items()},
            ablation.plot,
            figure=FIGURE,
            against={name: result.against for name, result in named.items() if result.against is not None},
            mark=ablation.majority[FIGURE],
        )
        rows_as_dicts = {
            result.row.id: {"metrics": result.metrics, "against": result.against and vars(result.against)}
            for result in results
        }
        series.write_result(series.result | {table: {"seeds": list(seeds), "rows": rows_as_dicts}})
    return ablation


def check_rows(rows: Sequence[Row], config: Config, facts: ClipFacts | None = None, *, table: Table) -> None:
    """Raise ValueError if a row cannot be trained, if one of its switches changes nothing, or if a setting of `config`
    changes nothing in any row.

    Args:
        rows: The rows of the table.
        config: Configuration of every run, apart from the rows' switches.
        facts: Of the data set; None leaves out what depends on it.
        table: Its name, for the message.
    """
    settings = []
    for row in rows:
        try:
            settings.append(apply_overrides(config, resolve_switches(row, config)))
        except ValueError as error:
            raise ValueError(f"row {row.id} of the table {table}: {error}") from error
        own = {text.partition("=")[0] for text in row.switches}
        for idle in find_idle(settings[-1], facts):
            if idle.key in own:
                raise ValueError(f"row {row.id} of the table {table}: {idle.reason}: set that, or choose another table")
    for row in ROWS:  # a setting may be meant for another table of the same series
        with suppress(ValueError):
            settings.append(apply_overrides(config, resolve_switches(row, config)))
    check_switches(settings, facts)


def choose_fold(config: Config, seed: int, splits: Sequence[Split]) -> int:
    """Return the part that a seed tests on."""
    return (config.data.fold + seed) % len(splits)


def resolve_switches(row: Row, config: Config) -> list[str]:
    """Return a row's overrides, with weights for losses that the configuration gives none."""
    weights = [] if config.loss.clip_weight else ["loss.clip_weight=1"]
    weights += [] if config.model.lambda_token else ["model.lambda_token=0.1"]
    return [*weights, *row.switches]


def row_config(row: Row, seed: int, config: Config, splits: Sequence[Split], series: Run) -> Config:
    """Return the configuration of a row's run with one seed: the row's switches, tested on the seed's part."""
    name = f"{row.run_of or row.id}-s{seed}".replace(" ", "-")
    member = member_config(apply_overrides(config, resolve_switches(row, config)), series, name=name)
    folds = max(config.data.folds, len(splits))  # a fold column may have more parts than data.folds allows to name
    return replace(
        member,
        split="test",
        data=replace(member.data, folds=folds, fold=choose_fold(config, seed, splits)),
        trainer=replace(config.trainer, seed=seed),
    )


def run_row(
    row: Row, settings: Config, series: Run, *, reporter: Reporter = silent
) -> tuple[Predictions, dict[str, float]]:
    """Return predictions and metrics of a row with one seed: train and test its run, or reuse its results."""
    run = train_member(series, settings, partial(train, check=False), reporter=reporter)
    name = result_name(settings, apply_overrides(settings, row.tested))
    file = run.path / f"predictions-{name}.npz"
    if name not in run.result or not file.exists():
        score(run.path, overrides=row.tested, reporter=reporter)
    return Predictions.load(file), run.result[name]["metrics"]


def list_tested_clips(splits: Sequence[Split]) -> dict[str, list[tuple[str, str, int | None]]]:
    """Return clip, subject and label of each test clip, by fold."""
    return {
        f"fold {fold}": [(record.clip_id, record.subject_id, record.label) for record in split.test]
        for fold, split in enumerate(splits)
    }


def render_markdown(ablation: Ablation, config: Config) -> str:
    """Return the caption and the table as Markdown."""
    baseline = ablation.results[0].row.id
    header = ["ID", "method", "switches", *COLUMNS.values(), f"macro F1 minus {baseline} (95 % interval)"]
    rows = []
    for result in ablation.results:
        switches = " ".join(f"`{text}`" for text in (*result.row.switches, *result.row.tested))
        figures = map(result.cell, COLUMNS)
        rows.append([result.row.id, result.row.what, switches, *figures, format_difference(result.against)])
    chance = {name: f"{value:.3f}" for name, value in ablation.majority.items()}
    rows.append(["", "always the most frequent class", "", *(chance.get(name, "") for name in COLUMNS), ""])
    return f"{compose_caption(ablation, config)}\n\n{markdown_table(header, rows)}\n"


def format_difference(against: Paired | None) -> str:
    """Return a paired difference as text; empty for the baseline."""
    return "" if against is None else f"{against.difference:+.3f} ({against.low:+.3f} to {against.high:+.3f})"


def compose_caption(ablation: Ablation, config: Config) -> str:
    """Return what was trained and tested, in a few sentences."""
    seeds = ", ".join(map(str, ablation.seeds))
    few = f"data.subjects={config.data.subjects}, " if config.data.subjects else ""
    return (
        f"{Path(str(config.data.root)).name}, {few}{config.data.size} px, {config.data.frames} frames, "
        f"{config.trainer.max_epochs} epochs at most; seeds {seeds}, each testing another part of the subjects: "
        f"{ablation.clips} clips of {ablation.subjects} subjects in all. Mean ± sd over the seeds. Differences are "
        "paired on the clips of all seeds; their intervals are a bootstrap over subjects. Retrieval (D1) and "
        "similarity to the clip's own map (D2) are shown for rows whose loss aligns."
    )
