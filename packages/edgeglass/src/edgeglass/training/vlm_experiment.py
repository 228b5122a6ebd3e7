"""Teach a language model to see, from a configuration, and leave a run folder with the model, plots and model card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_common.config import to_yaml
from clip_common.devices import device_count, divide_batch, pick_device
from clip_common.errors import DataError
from clip_common.features import FeatureCache
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.environment import rank
from clip_common.runs.opening import check_made_by
from clip_common.training import check_trainer, fit, load_weights
from edgeglass.config import VlmConfig
from edgeglass.data.conversations import Conversation, read_conversations
from edgeglass.models.vlm.layout import EncodedConversation
from edgeglass.report.plots import draw_vlm_run
from edgeglass.scoring.features import read_image_tokens
from edgeglass.training.vlm_batches import VlmSplit
from edgeglass.training.vlm_modules import VlmData, VlmModule
from edgeglass.training.word_start import start_from_words
from edgeglass.vlm.building import build_vlm, load_decoder, load_prefix
from edgeglass.vlm.files import VERB, start_from
from edgeglass.vlm.vlm import VLM


@dataclass(frozen=True)
class TrainedVlm:
    """Result of `train_vlm`.

    Attributes:
        run: The run folder, with the best weights in `model/` and the last in `checkpoints/fit/last.ckpt`.
        validation: Loss and share of exact answers of the best weights on the validation split; None on ranks above 0.
        plots: PNG files of the run.
        cut: Training conversations that were too long, and were cut.
    """

    run: Run
    validation: dict[str, float] | None
    plots: list[Path]
    cut: int


def train_vlm(config: VlmConfig, *, resume: Path | None = None, reporter: Reporter = silent) -> TrainedVlm:
    """Train projector, adapters and recursion, select the epoch of the lowest validation loss, and leave a run folder.

    Args:
        config: See `edgeglass.config.vlm`.
        resume: Run folder to resume; `config` must be its configuration. It ends with the weights of an uninterrupted
            run.
        reporter: Shows progress of the work before and after the fit.

    Raises:
        ValueError: One line: data, model or configuration that cannot be used. Nothing was written then.
    """
    if config.align is None and config.prefix.name is None:
        raise ValueError("no image encoder: give align=RUN of `edgeglass align`, or prefix.name=ENCODER")
    if resume is not None:
        check_made_by(Run.open(resume), package="edgeglass", verb=VERB)
    elif config.name is not None:
        Run.check_new("edgeglass", config.name, root=config.runs)
    divide_batch(config.data.batch_size, world=device_count(config.trainer))
    check_trainer(config.trainer)
    with reporter("reading conversations") as progress:
        sets = read_conversations(config.data, progress=progress)
    check_splits(config, {split: sets.splits[split] for split in ("train", "val")})
    language = load_decoder(config)
    prefix, sight = load_prefix(config)
    model = build_vlm(config, prefix=prefix, language=language)
    if config.start is not None:
        start_from(model, config.start, decoder=language)
    home, device = model.device, pick_device(config.trainer.devices)
    vlm = VLM(model, config, sight=sight, language=language, device=device)
    cache = FeatureCache(config.cache_folder / "features")
    data = {
        split: prepare_split(vlm, sets.splits[split], cache=cache, reporter=reporter, name=split)
        for split in ("train", "val")
    }
    check_units(config, data["train"])
    if config.prefix.start == "words" and config.start is None and resume is None:
        with reporter("word embeddings of the answers"):
            start_from_words(model, data["train"])
    module = VlmModule(model.to(home), config, data)

    if resume is None:
        label = f"{config.label}-s{config.trainer.seed}"
        run = Run.create(
            "edgeglass", config_yaml=to_yaml(config), name=config.name, label=label, root=config.runs, verb=VERB
        )
    else:
        run = Run.resume(resume.resolve(), config_yaml=to_yaml(config))
    loaders = VlmData(data, config)
    result = fit(module, loaders, config.trainer, run, monitor="val/loss", mode="min", resume=resume is not None)
    cut = sum(conversation.cut > 0 for conversation in data["train"].encoded)
    if rank() != 0:
        return TrainedVlm(run=run, validation=None, plots=[], cut=cut)

    load_weights(module, result.best)
    vlm.save_pretrained(run.folder("model"))
    validation = read_validation(run)
    counts = {"epochs": result.epochs, "steps": result.steps, "skipped": sets.skipped, "cut": cut}
    run.write_result(run.result | counts | {"val": validation})
    run.register_once({"model": config.label, "seed": config.trainer.seed, "split": "val"} | validation)
    write_card(config, run, validation)
    return TrainedVlm(run=run, validation=validation, plots=draw_vlm_run(run), cut=cut)


def check_splits(config: VlmConfig, splits: dict[str, list[Conversation]]) -> None:
    """Raise DataError if training or validation has no conversation."""
    for split, conversations in splits.items():
        if not conversations:
            hint = "" if split == "train" else "; set data.hold_out=N to use training images"
            raise DataError(f"{config.data.root}: no conversation in {split}{hint}")


def check_units(config: VlmConfig, train: VlmSplit) -> None:
    """Raise DataError if the training split does not fill a batch."""
    if config.data.batch_size > len(train.units):
        raise DataError(
            f"{config.data.root}: {len(train.units)} training image(s) do not fill a batch of "
            f"{config.data.batch_size}: set data.batch_size to at most {len(train.units)}"
        )


def prepare_split(
    vlm: VLM, conversations: Sequence[Conversation], *, cache: FeatureCache, reporter: Reporter, name: str
) -> VlmSplit:
    """Return a split with the tokens of its conversations and the features of its images, computed or cached.

    Raises:
        ValueError: One line: an image that cannot be read, or a context without room for text.
    """
    images = read_image_tokens(
        vlm.model.prefix,
        [one.image for one in conversations],
        cache=cache,
        reporter=reporter,
        what=f"image features of the {name} split",
    )
    encoded = [
        encode_conversation(vlm, one, prefix=images.prefix_of(number)) for number, one in enumerate(conversations)
    ]
    return VlmSplit(conversations, encoded, images)


def encode_conversation(vlm: VLM, conversation: Conversation, *, prefix: int | None) -> EncodedConversation:
    """Return the tokens of a conversation; `prefix` is the number of tokens of its image.

    Raises:
        DataError: The context leaves no room for its text.
    """
    turns = [(turn.question, turn.answer) for turn in conversation.turns]
    try:
        return vlm.layout.encode(turns, image=prefix is not None, limit=vlm.limit - (prefix or 0))
    except ValueError as error:
        raise DataError(f"{conversation.name}: {error}") from error


def read_validation(run: Run) -> dict[str, float]:
    """Return the validation metrics of the epoch with the lowest loss, from metrics.csv."""
    rows = [row for row in run.metrics.rows() if row.get("val/loss")]
    chosen = min(rows, key=lambda row: float(row["val/loss"]))
    return {name.removeprefix("val/"): float(chosen[name]) for name in ("val/loss", "val/accuracy")}


def write_card(config: VlmConfig, run: Run, validation: dict[str, float]) -> Path:
    """Write the run's README.md, a model card."""
    eyes = config.prefix.name or Path(str(config.align)).name
    return run.write_model_card(
        title=f"{run.name}: {config.label} that sees",
        summary=(
            f"{config.label} with image tokens of {eyes}, trained by edgeglass on {Path(str(config.data.root)).name} "
            f"(phase {config.phase}). Exact answers on the validation split: {validation['accuracy']:.3f}. The "
            "weights were selected on that split: score another one with `edgeglass vlm-eval`."
        ),
        results={name: round(value, 4) for name, value in validation.items()},
        usage=(
            "from edgeglass import VLM\n\n"
            f'vlm = VLM.from_pretrained("{run.path.as_posix()}")\n'
            'print(vlm.ask("photo.jpg", "what colour is the ball?"))'
        ),
        tags=["visual-question-answering", "vision-language-model"],
    )
