"""`aaclip feedback`: loops of both stages in one run folder, each scored on images that no loop learns from.

Phases of the ledger: `loop1-text`, `loop1-image`, `loop1-score`, `loop2-text`, …, `model`.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from aaclip.config import Config
from aaclip.data import Record, save_list
from aaclip.data.selection import (
    HELD_OUT_LIST,
    TRAINING_LIST,
    find_training_list,
    hash_file,
    read_hashes,
    split_held_out,
)
from aaclip.detector.detector import Detector
from aaclip.detector.files import name_loop, read_detector
from aaclip.models.prompts import note_unnamed
from aaclip.scoring.evaluation import evaluate
from aaclip.scoring.score import JUDGED, LABELS, format_percent
from aaclip.training.contexts import name_contexts, read_text_contexts
from aaclip.training.experiment import DETECTOR, finish, fit_score, prepare
from aaclip.training.experiment import resolve as resolve_run
from aaclip.training.fits import Job, embed_training_classes, train_image, train_text
from aaclip.training.loops import LoopImageStage, LoopTextStage
from aaclip.training.stages import mark_resumed
from clip_common.config import ConfigError, to_yaml
from clip_common.devices import check_one_device
from clip_common.loader import epoch_seed
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.opening import MODEL

VERB = "feedback"

Loop = dict[str, float | None]
"""Figures of a loop: `text/loss` and `image/loss`, means over the last epoch of a stage, and `JUDGED`."""


@dataclass(frozen=True)
class Looped:
    """Result of `feedback`.

    Attributes:
        run: The run folder, with a file for each loop; `model/` in it is the last loop's detector.
        detector: The same, ready to use.
        loops: Figures of each loop.
        images: Images it learned from.
        held_out: Images that the loops were scored on.
        plots: PNG files of the run.
        notes: Lines about how it was trained.
    """

    run: Run
    detector: Detector
    loops: list[Loop]
    images: int
    held_out: int
    plots: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def resolve(*, config: str | None = None, overrides: Sequence[str] = (), resume: Path | None = None) -> Config:
    """Return the configuration of a run to resume, or of a new one, with cross-attention unless an override says no.

    Args:
        config: Name of a configuration, or a file.
        overrides: `section.field=value` each.
        resume: A run to resume with its own configuration.

    Raises:
        ValueError: See `experiment.resolve`.
    """
    if resume is None:
        overrides = ["cross_attention.enabled=true", *overrides]
    return resolve_run(config=config, overrides=overrides, resume=resume, verb=VERB)


def feedback(config: Config, *, resume: Path | None = None, reporter: Reporter = silent) -> Looped:
    """Train both stages in several loops, from the second on against the patches of the loop before.

    Without cross-attention this is training in alternating order: text, image, text, …

    A killed run that is resumed ends with the weights of an uninterrupted one, bit for bit on a CPU.

    Args:
        config: See `aaclip.config`.
        resume: Continue this run folder where it stopped; `config` is its configuration.
        reporter: Shows progress of what precedes and follows the fits.

    Raises:
        ValueError: One line for anything in the data, the model or the configuration that cannot be used; nothing has
            been written then.
    """
    check_loops(config)
    run = None if resume is None else Run.open(resume)
    if run is not None and run.ledger.done(DETECTOR) and (run.path / MODEL).is_dir():
        return load_finished(run)
    if run is None and config.name is not None:
        Run.check_new("aaclip", config.name, root=config.runs)
    job = prepare(config, stage="both", run=run)
    learned, held_out = split_held_out(job.records, share=config.feedback.held_out, seed=config.trainer.seed)
    if run is None:
        label = f"{Path(str(config.data.root)).resolve().name}-{config.backbone.name}-loops-s{config.trainer.seed}"
        run = Run.create(
            "aaclip",
            config_yaml=to_yaml(config),
            name=config.name,
            label=label.replace("/", "-"),
            root=config.runs,
            verb=VERB,
        )
    else:
        run = mark_resumed(run, config)
    with run.locked():
        return run_loops(job, run, learned, held_out, resumed=resume is not None, reporter=reporter)


def check_loops(config: Config) -> None:
    """Raise ValueError if loops cannot be trained with this configuration."""
    check_one_device(config.trainer, verb=VERB)
    if config.stages.order == "joint":
        raise ConfigError("stages.order=joint: loops train one stage after the other: set stages.order=separate")
    settings, attends = config.feedback, config.cross_attention.enabled
    if settings.freeze != "none":
        if config.start is None:
            raise ConfigError(
                f"feedback.freeze={settings.freeze} keeps adapters and heads, which are untrained here: name the run "
                "that trained them, with start=RUN"
            )
        if not attends or settings.cross_attention_start_loop > 1:
            raise ConfigError(
                f"feedback.freeze={settings.freeze} trains cross-attention in every loop: set "
                "cross_attention.enabled=true and feedback.cross_attention_start_loop=1"
            )


def run_loops(
    job: Job, run: Run, learned: list[Record], held_out: list[Record], *, resumed: bool, reporter: Reporter
) -> Looped:
    """Train the loops in a run folder, whose lock the caller holds.

    Args:
        job: Of `experiment.prepare`.
        run: Its folder.
        learned, held_out: Parts of the job's images.
        resumed: Continue from the checkpoints in it.
        reporter: Shows progress of what precedes and follows the fits.
    """
    config, root = job.config, Path(str(job.config.data.root))
    run.ledger.start(DETECTOR)
    shutil.rmtree(run.path / MODEL, ignore_errors=True)
    for name, records in ((TRAINING_LIST, job.records), (HELD_OUT_LIST, held_out)):
        if not (run.path / name).exists():
            save_list(records, run.path / name, root=root)
    notes = note_start(config, held_out)
    loops: list[Loop] = []
    seen: dict[str, Tensor] = {}
    for loop in range(1, config.feedback.loops + 1):
        own = replace(job, config=configure_loop(config, loop), records=learned)
        detector, seen = train_loop(own, run, loop, seen=seen, resumed=resumed, reporter=reporter)
        detector.config = replace(config, cross_attention=detector.config.cross_attention)
        loops.append(score_loop(run, detector, loop, learned, held_out, reporter=reporter))
        if loop >= config.feedback.cross_attention_start_loop and has_plateau(loops, config):
            break
    notes += note_unnamed(config.prompts, job.prompts, sorted({record.class_name for record in learned}))
    if len(loops) < config.feedback.loops:
        notes.append(f"ended after loop {len(loops)} of {config.feedback.loops}: no gain on the held-out images")
    run.write_result(run.result | {"loops": loops, "held_out": len(held_out)})
    trained = finish(run, detector, learned)
    return Looped(run, detector, loops, len(learned), len(held_out), plots=trained.plots, notes=tuple(notes))


def configure_loop(config: Config, loop: int) -> Config:
    """Return the configuration of a loop: its epochs, learning rates and seed. The first has the seed of the run.

    Views are cached for the first loop only, because later loops read patches that change.
    """
    text, image = config.feedback.epochs(loop)
    decay = config.feedback.lr_decay ** (loop - 1)
    stages = replace(
        config.stages,
        text=replace(
            config.stages.text,
            epochs=text,
            lr=config.stages.text.lr * decay,
            cache_features=config.stages.text.cache_features if loop == 1 else 0,
        ),
        image=replace(config.stages.image, epochs=image, lr=config.stages.image.lr * decay),
    )
    seed = config.trainer.seed if loop == 1 else epoch_seed(config.trainer.seed, loop)
    return replace(config, stages=stages, trainer=replace(config.trainer, seed=seed))


def train_loop(
    job: Job, run: Run, loop: int, *, seen: Mapping[str, Tensor], resumed: bool, reporter: Reporter
) -> tuple[Detector, dict[str, Tensor]]:
    """Train both stages of a loop; afterwards the model holds its last weights.

    Args:
        job: Of this loop.
        run: Gets checkpoints and metrics.
        loop: From 1.
        seen: Text context of each class that images attended to in the loop before.
        resumed: Continue from the checkpoints.
        reporter: Shows progress of what precedes the fits.

    Returns:
        The detector, whose score is not fitted yet, and the text context of each class that its images attend to.
    """
    config = job.config
    attends = job.model.text_cross_attn is not None and loop >= config.feedback.cross_attention_start_loop
    image_contexts = train_text(
        job,
        run,
        resumed=resumed,
        reporter=reporter,
        phase=f"loop{loop}-text",
        attends=attends,
        make=partial(LoopTextStage, feedback=config.feedback, first=loop == 1, seen=seen),
    )
    classes = embed_training_classes(job, image_contexts)
    text_contexts = read_text_contexts(job.model, list(classes), job.prompts) if attends else {}
    train_image(
        job,
        classes,
        text_contexts,
        run,
        resumed=resumed,
        phase=f"loop{loop}-image",
        make=partial(LoopImageStage, feedback=config.feedback),
    )
    contexts = name_contexts(image_contexts, text_contexts)
    if contexts is None and config.cross_attention.enabled:
        # before `cross_attention_start_loop`: no test of this loop uses the untrained modules
        config = replace(config, cross_attention=replace(config.cross_attention, at_test=False))
    detector = Detector(job.model, config, classes=classes, contexts=contexts, name=run.name, device=job.model.device)
    return detector, {} if contexts is None else text_contexts


def score_loop(
    run: Run,
    detector: Detector,
    loop: int,
    learned: Sequence[Record],
    held_out: Sequence[Record],
    *,
    reporter: Reporter,
) -> Loop:
    """Fit the image score of a loop's detector, write its file, and return its figures; a finished loop is read."""
    phase, file = f"loop{loop}-score", run.path / name_loop(loop)
    if run.ledger.done(phase):
        stored = read_detector(file)
        detector.score, detector.border = stored.score, stored.border
        return run.ledger.payload(phase)
    run.ledger.start(phase)
    with reporter(f"loop {loop}: fitting the score") as progress:
        fit_score(detector, learned, progress=progress)
    figures: Loop = {f"{stage}/loss": read_last_loss(run, f"loop{loop}-{stage}") for stage in ("text", "image")}
    if held_out:
        with reporter(f"loop {loop}: scoring {len(held_out):,} held-out images") as progress:
            means = evaluate(detector, held_out, samples=1, progress=progress).mean
        figures |= {metric: means[metric] for metric in JUDGED}
    detector.save_pretrained(file)
    run.ledger.finish(phase, figures)
    return figures


def read_last_loss(run: Run, phase: str) -> float:
    """Return the mean training loss of a phase's last epoch."""
    rows = [row for row in run.metrics.rows() if row["phase"] == phase and row.get("train/loss")]
    last = [float(row["train/loss"]) for row in rows if row["epoch"] == rows[-1]["epoch"]]
    return sum(last) / len(last)


def has_plateau(loops: Sequence[Loop], config: Config) -> bool:
    """Return whether the last `plateau_patience` loops brought no gain of `plateau_threshold` on the held-out images.

    A loop is judged by the mean of those of `JUDGED` that exist, and gains if it exceeds the best judged so far.
    """
    patience, threshold = config.feedback.plateau_patience, config.feedback.plateau_threshold
    if patience is None:
        return False
    best, without_gain = None, 0
    for figures in loops:
        values = [value for metric in JUDGED if (value := figures[metric]) is not None]
        mean = sum(values) / len(values) if values else 0.0
        if best is None or mean >= best + threshold:
            best, without_gain = mean, 0
        else:
            without_gain += 1
    return without_gain >= patience


def format_loops(loops: Sequence[Loop]) -> list[list[str]]:
    """Return figures as rows of text, the heading first: losses, and metrics in percent, "n/a" without a value."""
    metrics = [metric for metric in JUDGED if metric in loops[0]]
    heading = ["loop", "text loss", "image loss", *(LABELS[metric] for metric in metrics)]
    rows = [
        [
            str(number),
            *(f"{figures[f'{stage}/loss']:.4f}" for stage in ("text", "image")),
            *(format_percent(figures[metric]) for metric in metrics),
        ]
        for number, figures in enumerate(loops, start=1)
    ]
    return [heading, *rows]


def note_start(config: Config, held_out: Sequence[Record]) -> list[str]:
    """Return a line if the run that this one starts from learned from held-out images."""
    file = None if config.start is None else find_training_list(Path(config.start))
    if file is None:
        return []
    learned = set(read_hashes(file))
    known = sum(hash_file(record.image) in learned for record in held_out)
    if not known:
        return []
    return [
        f"start={config.start} learned from {known} of the {len(held_out)} held-out images: their figures are too high"
    ]


def load_finished(run: Run) -> Looped:
    """Load a run in which nothing is left to do."""
    result = run.result
    return Looped(
        run,
        Detector.from_pretrained(run.path),
        result["loops"],
        images=result["images"],
        held_out=result["held_out"],
        plots=tuple(sorted((run.path / "plots").glob("*.png"))),
    )
