"""Score a run on a split: metrics, plots, result.json and a row of the run registry."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from clip_common.config import load_config
from clip_common.devices import pick_device
from clip_common.errors import check_list
from clip_common.features import FeatureCache
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.folder import is_run
from edgeglass.aligner.aligner import Aligner
from edgeglass.config import Config
from edgeglass.data.items import collect_items
from edgeglass.data.loading import read_samples
from edgeglass.data.records import Sample
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.report.plots import TopTen, WidthCurve, draw_gap, draw_widths
from edgeglass.scoring.ceilings import read_ceilings
from edgeglass.scoring.embedding import EmbeddedSplit, collect_split, embed_split
from edgeglass.scoring.evaluation import Evaluation, MixedGallery, evaluate, measure_gaps, measure_shares

EXTRA_WIDTHS = (32, 16)
"""Narrow widths that are scored even if they were not trained."""
PANELS = ("image", "image+audio", "audio", "text", "image+text", "audio+text")
"""Order of the modalities in the name of a panel."""
SETTLED = ("data.", "split", "runs", "embeddings.")
"""Settings of a trained run that may still change."""


@dataclass(frozen=True)
class Scored:
    """Result of `score`.

    Attributes:
        config: The run's configuration with the overrides.
        name: The run's name.
        evaluation: The scores.
        centred: The gap and the mixed gallery with each modality's mean subtracted, and without.
        written: Files that were written.
    """

    config: Config
    name: str
    evaluation: Evaluation
    centred: dict[bool, tuple[dict[str, float], MixedGallery | None]]
    written: list[Path]


def score(source: str | Path, *, overrides: Sequence[str] = (), reporter: Reporter = silent) -> Scored:
    """Score a run, or a saved model, on the split that `split` names.

    The scores of a run are added to its result.json and to the registry of runs, its plots to RUN/plots.

    Args:
        source: A run folder (its own configuration applies unless overridden), or a saved model.
        overrides: `data.root=…`, `split=…`, `embeddings.centre=true` and the like.
        reporter: Shows progress.

    Raises:
        ValueError: One line: a model that cannot be opened, settings that a trained model keeps, or data that cannot be
            used.
    """
    check_list(overrides, "overrides")
    aligner = Aligner.from_pretrained(source)
    config = override_config(aligner.config, overrides)
    samples = read_samples(config.data)
    cache = FeatureCache(config.cache_folder / "features")
    model, rows = aligner.model, samples.splits[config.split]
    model.to(pick_device(config.trainer.devices))
    split = embed_split(model, rows, config, cache=cache, reporter=reporter, name=config.split)
    evaluation = evaluate_split(split, model, config, rows)
    centred = compare_centring(split, model, config, rows)
    written = []
    name = Path(source).resolve().name
    if is_run(Path(source)):
        run = Run.open(source)
        scores = evaluation.as_dict() | {"data": str(config.data.root), "skipped": samples.skipped}
        written.append(run.write_result(run.result | {config.split: scores}))
        run.register({"split": config.split, "data": str(config.data.root)} | evaluation.metrics)
        written += draw_evaluation(evaluation, centred, run.folder("plots"), split=config.split)
    return Scored(config, name, evaluation, centred, written)


def score_samples(
    model: MultimodalAlignmentModel,
    samples: Sequence[Sample],
    config: Config,
    *,
    cache: FeatureCache,
    reporter: Reporter = silent,
    name: str = "",
) -> Evaluation:
    """Score a model on samples; the model must already be on its device.

    Raises:
        ValueError: No sample has two of the model's modalities, or an item cannot be read.
    """
    split = embed_split(model, samples, config, cache=cache, reporter=reporter, name=name)
    return evaluate_split(split, model, config, samples)


def evaluate_split(
    split: EmbeddedSplit, model: MultimodalAlignmentModel, config: Config, samples: Sequence[Sample]
) -> Evaluation:
    """Return the scores of an embedded split at the trained widths and at two narrower ones."""
    narrow = [width for width in EXTRA_WIDTHS if width < model.widths[-1]]
    return evaluate(
        split,
        pairs=list(config.pairs),
        widths=[*model.widths, *narrow],
        ceilings=read_ceilings(samples),
        samples=len(samples),
        target=config.fusion.target if config.fusion.kind != "none" else "text",
    )


def compare_centring(
    split: EmbeddedSplit, model: MultimodalAlignmentModel, config: Config, samples: Sequence[Sample]
) -> dict[bool, tuple[dict[str, float], MixedGallery | None]]:
    """Return the gap and the mixed gallery without and with the means subtracted."""
    items = {name: one for name, one in collect_items(samples).items() if name in split.pooled}
    found = {}
    for centre in (False, True):
        one = collect_split(model, split.pooled, items, count=len(samples), centre=centre)
        found[centre] = (measure_gaps(one.vectors), measure_shares(one))
    return found


def draw_evaluation(
    evaluation: Evaluation,
    centred: Mapping[bool, tuple[dict[str, float], MixedGallery | None]],
    folder: Path,
    *,
    split: str,
) -> list[Path]:
    """Draw recall against width, and the shares of the mixed gallery."""
    curves = [
        WidthCurve(
            pair="-".join(sorted((way.query.partition(",")[0], way.gallery), key=PANELS.index)),
            direction=f"{way.query} to {way.gallery}",
            recalls={one.width: one.result.metrics["R@1"] for one in evaluation.directions if one.name == way.name},
            ceiling=way.ceiling,
        )
        for way in evaluation.full
    ]
    written = [draw_widths(folder / f"widths-{split}.png", curves)]
    plain, centred_gallery = centred[False][1], centred[True][1]
    if plain is not None and centred_gallery is not None:
        top_tens = [
            TopTen(
                query=name,
                truth=plain.truth,
                shares={"as aligned": plain.shares[name], "centred": centred_gallery.shares[name]},
            )
            for name in plain.shares
        ]
        written.append(draw_gap(folder / f"mixed-{split}.png", top_tens))
    return written


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """Return a trained model's configuration with other data or another split.

    Raises:
        ValueError: An unknown key, or a setting that a trained model keeps.
    """
    keys = [text.partition("=")[0].strip() for text in overrides]
    settled = [key for key in keys if not key.startswith(SETTLED)]
    if settled:
        raise ValueError(
            f"{', '.join(settled)}: the model is trained and keeps its settings; set data.*, split, runs or "
            "embeddings.centre, or align another one"
        )
    return load_config(Config, config=asdict(config), overrides=list(overrides))
