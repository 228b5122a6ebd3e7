"""`aaclip ablate`: train with one change at a time, over several seeds, and compare each with none, paired."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from aaclip.config import AblateConfig, AblationArea, Config
from aaclip.data import Record, check_no_overlap
from aaclip.report.plots import draw_comparison
from aaclip.scoring.bootstrap import compare_runs
from aaclip.scoring.evaluation import Evaluation
from aaclip.scoring.score import JUDGED, LABELS, format_percent, read_test_records
from aaclip.scoring.stored import hash_scoring
from aaclip.series.compare import format_difference, score_source
from aaclip.training.experiment import read_training_records, train
from aaclip.training.feedback import check_loops, feedback
from clip_common.config import ConfigError, apply_overrides, load_config
from clip_common.devices import check_one_device
from clip_common.metrics import Paired
from clip_common.plots import Dots
from clip_common.reporting import Reporter, silent
from clip_common.runs import MetricsCsv, Run, write_atomically
from clip_common.runs.files import write_text
from clip_common.runs.series import Announce, check_choices, check_same_data, open_series, split_options, train_member
from clip_common.tables import markdown_table


@dataclass(frozen=True)
class Arm:
    """One change of the training.

    Attributes:
        area: What is changed; `--area` chooses the arms of one.
        name: The change, in words.
        switches: Overrides of the configuration that make it.
        alternating: Train both stages in turn, twice, with the same number of epochs in all (`aaclip feedback`).
    """

    area: AblationArea | None
    name: str
    switches: tuple[str, ...] = ()
    alternating: bool = False


BASE = Arm(None, "base")
ARMS = (
    Arm("placement", "adapters in the last blocks", ("adapters.placement=last",)),
    Arm("placement", "adapters in blocks all over the depth", ("adapters.placement=spread",)),
    Arm("adapter", "MLP", ("adapters.kind=mlp",)),
    Arm("adapter", "linear", ("adapters.kind=linear",)),
    Arm("adapter", "LoRA", ("adapters.kind=lora",)),
    Arm("adapter", "convolution", ("adapters.kind=conv",)),
    Arm("adapter", "parallel", ("adapters.position=parallel",)),
    Arm("norm", "not preserved", ("adapters.norm=none",)),
    Arm("norm", "LayerNorm", ("adapters.norm=layer",)),
    Arm("norm", "preserved, times a learned factor", ("adapters.norm=learned",)),
    Arm("prompts", "four learned tokens", ("prompts.learned_tokens=4",)),
    Arm("levels", "learned weights", ("stages.image.learned_levels=true",)),
    Arm("detection", "mean of patches", ("heads.detection=mean",)),
    Arm("detection", "attention over patches", ("heads.detection=attention",)),
    Arm("detection", "mean over patches of all levels", ("heads.detection=levels",)),
    Arm("loss", "InfoNCE instead of orthogonal", ("loss.orthogonal=0", "loss.infonce=0.1")),
    Arm("order", "joint", ("stages.order=joint", "stages.text.cache_features=0")),
    Arm("order", "alternating", alternating=True),
)


@dataclass(frozen=True)
class Result:
    """An arm over all seeds.

    Attributes:
        arm: The change.
        metrics: Means over the classes by metric, for each seed.
        against: Differences from the base by metric, `judged` among them; empty for the base itself.
    """

    arm: Arm
    metrics: list[dict[str, float | None]]
    against: dict[str, Paired]

    @property
    def verdict(self) -> str:
        """Whether it is better or worse than the base beyond the 95 % interval of the figure that decides."""
        if (paired := self.against.get("judged")) is None:
            return ""
        return "better" if paired.low > 0 else "worse" if paired.high < 0 else "no difference shown"

    def values(self, metric: str) -> list[float]:
        """Return a metric of each seed, or the mean of `JUDGED` under `judged`; empty if one lacks it."""
        names = JUDGED if metric == "judged" else (metric,)
        seeds = [[value for name in names if (value := of[name]) is not None] for of in self.metrics]
        return [mean(values) for values in seeds] if all(len(values) == len(names) for values in seeds) else []


@dataclass(frozen=True)
class Ablation:
    """Result of `ablate`.

    Attributes:
        folder: Folder of the series; its runs are in `aaclip/` inside it.
        seeds: Seeds of each arm's runs.
        results: One for each arm, the base first.
        tested: Name of the set that all were tested on.
        images: Images of its test split.
        files: ablation.csv, ablation.md and ablation.png, with the area in their names if there is one.
    """

    folder: Path
    seeds: tuple[int, ...]
    results: list[Result]
    tested: str
    images: int
    files: list[Path]


def resolve_ablation(*, config: str | None, overrides: Sequence[str]) -> tuple[Config, AblateConfig]:
    """Return the configuration of the base, and the options of the verb (`seeds=` among the overrides).

    Raises:
        ValueError: An unknown key or a wrong value.
    """
    options, rest = split_options(AblateConfig, overrides, own=("seeds",))
    return load_config(Config, config=config, overrides=rest, package="aaclip"), options


def ablate(
    config: Config,
    root: Path,
    *,
    format: str = "auto",
    area: AblationArea | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    samples: int = 1000,
    reporter: Reporter = silent,
    announce: Announce = lambda line: None,
) -> Ablation:
    """Train the base and each arm with each seed, score all of them on one set, and compare the arms with the base.

    Called again, it continues: finished runs are kept, a killed one is resumed, and more seeds or areas are added.

    Args:
        config: Of the base; each arm changes it.
        root: Folder of a labelled set, whose test split is scored.
        format: Of the set: `auto`, or one of `aaclip.data.FORMATS`.
        area: Arms of this area alone; None: all arms.
        seeds: Training seeds.
        samples: Resamples of the intervals.
        reporter: Shows progress outside training.
        announce: Called with one line as each run begins.

    Raises:
        ValueError: One line: no seed or a repeated one, several devices, an arm that the
            configuration forbids, a series of that name with another configuration or other images, images that are
            both learned from and tested, and whatever `train` refuses.
    """
    check_choices("seeds", seeds, example="[0,1,2]")
    check_one_device(config.trainer, verb="ablate")
    arms = [BASE, *(arm for arm in ARMS if area in (None, arm.area))]
    settings = {arm: change(config, arm) for arm in arms}  # before anything is trained: each must be possible
    learned, tested = read_training_records(config), read_test_records(root, format=format)
    check_no_overlap(learned, tested)
    name = config.name or Path(str(config.data.root)).resolve().name
    series = open_series("ablate", config, package="aaclip", name=name)
    with series.locked():
        check_same_data(series, {"train": _list(learned), "test": _list(tested)}, what="images")
        found: dict[Arm, list[Evaluation]] = {arm: [] for arm in arms}
        pairs = [(seed, arm) for seed in seeds for arm in arms]  # seed by seed: an interrupted table is comparable
        for number, (seed, arm) in enumerate(pairs, start=1):
            announce(f"{describe(arm)}, seed {seed} ({number} of {len(pairs)})")
            found[arm].append(run_arm(arm, settings[arm], tested, series, seed=seed, reporter=reporter))
        results = [compare_arm(arm, found[arm], found[BASE], samples=samples) for arm in arms]
        ablation = Ablation(series.path, tuple(seeds), results, root.resolve().name, len(tested), files=[])
        files = write_ablation(ablation, config, suffix="" if area is None else f"-{area}")
        series.write_result(series.result | {area or "all": _to_json(ablation)})
    return replace(ablation, files=files)


def change(config: Config, arm: Arm) -> Config:
    """Return the configuration of an arm.

    Raises:
        ValueError: The base's configuration forbids it.
    """
    switches = [*arm.switches, *(alternate(config) if arm.alternating else ())]
    try:
        changed = apply_overrides(config, switches)
        if arm.alternating:
            check_loops(changed)
    except ConfigError as error:
        raise ConfigError(f"{describe(arm)}: {error}") from error
    return changed


def alternate(config: Config) -> list[str]:
    """Return overrides of two feedback loops that have the epochs of the two stages between them, the first the more,
    at the same rates, and learn from all images."""
    halves = {}
    for stage in ("text", "image"):
        epochs = getattr(config.stages, stage).epochs
        halves[stage] = [max(1, epochs - epochs // 2), max(1, epochs // 2)]
    return [
        "feedback.loops=2",
        *(f"feedback.{stage}_epochs={epochs}" for stage, epochs in halves.items()),
        "feedback.epochs_decay=null",
        "feedback.lr_decay=1.0",
        "feedback.plateau_patience=null",
        "feedback.held_out=0.0",
        "feedback.cross_attention_start_loop=1",
    ]


def describe(arm: Arm) -> str:
    """Return an arm in words."""
    return f"{arm.area}: {arm.name}" if arm.area else arm.name


def run_arm(
    arm: Arm, config: Config, tested: Sequence[Record], series: Run, *, seed: int, reporter: Reporter
) -> Evaluation:
    """Return the scores of an arm with one seed: train and score its run, or reuse them."""
    name = f"{describe(arm)}-s{seed}".replace(": ", "-").replace(" ", "-").replace(",", "")
    member = replace(config, name=name, runs=series.path.as_posix(), trainer=replace(config.trainer, seed=seed))
    run = train_member(series, member, feedback if arm.alternating else train, reporter=reporter)
    file = series.path / "scores" / f"{hash_scoring(run.path, tested)}.npz"
    return score_source(run.path, tested, file=file, label=name, reporter=reporter)


def compare_arm(arm: Arm, ours: Sequence[Evaluation], base: Sequence[Evaluation], *, samples: int) -> Result:
    """Compare an arm with the base, over draws of the tested images and of the seeds."""
    pairs = [(one.scores, other.scores) for one, other in zip(ours, base, strict=True)]
    same = [0] * len(pairs)  # each seed scored the same images
    against = {} if arm is BASE else compare_runs(pairs, seeds=same, samples=samples, judged=JUDGED)
    return Result(arm, [dict(one.mean) for one in ours], against)


def write_ablation(ablation: Ablation, config: Config, *, suffix: str) -> list[Path]:
    """Write the table as CSV and Markdown, and the plot of the figure that decides, each whole or not at all."""
    files = [ablation.folder / f"ablation{suffix}.{kind}" for kind in ("csv", "md", "png")]
    with write_atomically(files[0]) as temporary:
        MetricsCsv(temporary).extend(_to_line(result) for result in ablation.results)
    heading, *rows = format_ablation(ablation)
    write_text(files[1], f"{compose_caption(ablation, config)}\n\n{markdown_table(heading, rows)}\n")
    if ablation.results[0].values("judged"):
        draw_comparison(
            [_to_dots(result) for result in ablation.results],
            files[2],
            metric="mean of three metrics",
            xlabels=("each seed, and their mean", "95 % interval over images and seeds"),
        )
    return [file for file in files if file.exists()]


def format_ablation(ablation: Ablation) -> list[list[str]]:
    """Return the table as rows of text, the heading first: means in percent, differences from the base in points."""
    rows = [["arm", *(LABELS[metric] for metric in JUDGED), "mean", "minus base", ""]]
    for result in ablation.results:
        values = {metric: result.values(metric) for metric in (*JUDGED, "judged")}
        means = [format_percent(mean(of) if of else None) for of in values.values()]
        difference = format_difference(paired) if (paired := result.against.get("judged")) else ""
        rows.append([describe(result.arm), *means, difference, result.verdict])
    return rows


def compose_caption(ablation: Ablation, config: Config) -> str:
    """Return what was trained and tested, in a few sentences."""
    arms = len(ablation.results) - 1
    learned = Path(str(config.data.root)).resolve().name
    seeds = ", ".join(map(str, ablation.seeds))
    return (
        f"Trained on {learned}, tested on {ablation.images:,} images of {ablation.tested}; seeds {seeds}. In percent, "
        "means over the seeds; the mean is that of the three metrics before it, and its difference is in points, with "
        "the 95 % interval of a bootstrap over images and seeds, both paired. Intervals are not corrected for the "
        f"number of comparisons: of {arms} changes without any effect, one in twenty would seem to have one."
    )


def _list(records: Sequence[Record]) -> list[tuple[str, str, bool]]:
    return [(record.class_name, record.image.as_posix(), record.anomalous) for record in records]


def _to_dots(result: Result) -> Dots:
    values, paired = result.values("judged"), result.against.get("judged")
    return Dots(
        label=describe(result.arm),
        values=values,
        centre=mean(values),
        whisker=None,
        against=None if paired is None else (paired.difference, paired.low, paired.high),
    )


def _to_line(result: Result) -> dict[str, Any]:
    line: dict[str, Any] = {
        "area": result.arm.area or "",
        "arm": result.arm.name,
        "switches": " ".join(result.arm.switches),
        "verdict": result.verdict,
    }
    for metric in (*LABELS, "judged"):
        line |= {metric: mean(values) if (values := result.values(metric)) else None}
    for metric, paired in result.against.items():
        line |= {f"{metric} {what}": getattr(paired, what) for what in ("difference", "low", "high")}
    return line


def _to_json(ablation: Ablation) -> dict[str, Any]:
    return {
        "seeds": list(ablation.seeds),
        "arms": {
            describe(result.arm): {
                "metrics": result.metrics,
                "against": {metric: vars(paired) for metric, paired in result.against.items()},
            }
            for result in ablation.results
        },
    }
