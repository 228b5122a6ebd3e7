"""Align encoders from a configuration and leave a run folder with the model, its scores, plots and model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.nn.functional import normalize

from clip_common.config import to_yaml
from clip_common.devices import device_count, divide_batch, pick_device
from clip_common.errors import DataError
from clip_common.features import FeatureCache
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.environment import rank
from clip_common.runs.opening import check_made_by
from clip_common.training import check_trainer, fit, load_weights
from edgeglass.aligner.aligner import Aligner
from edgeglass.config import Config
from edgeglass.data.items import collect_items
from edgeglass.data.loading import read_samples
from edgeglass.data.records import Sample
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.building import build_model
from edgeglass.report.plots import draw_run
from edgeglass.scoring.evaluation import Evaluation
from edgeglass.scoring.features import embed_inputs, read_inputs
from edgeglass.scoring.score import score_samples
from edgeglass.training.batches import SplitData
from edgeglass.training.losses import build_loss
from edgeglass.training.modules import AlignmentData, AlignmentModule

VERB = "align"
"""The command that trains."""


@dataclass(frozen=True)
class Trained:
    """Result of `train`.

    Attributes:
        run: The run folder, with the best weights in `model/` and the last in `checkpoints/fit/last.ckpt`.
        validation: Scores of the best weights on the validation split; None on ranks above 0.
        plots: PNG files of the run.
    """

    run: Run
    validation: Evaluation | None
    plots: list[Path]


def train(config: Config, *, resume: Path | None = None, reporter: Reporter = silent) -> Trained:
    """Align, select the weights with the best mean R@1 on the validation split, and leave a complete run folder.

    Args:
        config: See `edgeglass.config`.
        resume: Run folder to resume; `config` must be its configuration. It ends with the weights of an uninterrupted
            run.
        reporter: Shows progress of the work before and after the fit.

    Raises:
        ValueError: One line: data, encoder or configuration that cannot be used. Nothing was written then.
    """
    if resume is not None:
        check_made_by(Run.open(resume), package="edgeglass", verb=VERB)
    elif config.name is not None:
        Run.check_new("edgeglass", config.name, root=config.runs)
    divide_batch(config.data.batch_size, world=device_count(config.trainer))
    check_trainer(config.trainer)
    loss = build_loss(config)
    samples = read_samples(config.data)
    check_samples(config, samples.splits)
    model = build_model(config, loss=loss)
    cache = FeatureCache(config.cache_folder / "features")
    home = model.device
    model.to(pick_device(config.trainer.devices))
    data = {
        split: prepare_split(model, samples.splits[split], config, cache=cache, reporter=reporter, name=split)
        for split in ("train", "val")
    }
    module = AlignmentModule(model.to(home), config, data)

    if resume is None:
        label = f"{config.label}-s{config.trainer.seed}"
        run = Run.create(
            "edgeglass", config_yaml=to_yaml(config), name=config.name, label=label, root=config.runs, verb=VERB
        )
    else:
        run = Run.resume(resume.resolve(), config_yaml=to_yaml(config))
    loaders = AlignmentData(data, config)
    result = fit(module, loaders, config.trainer, run, monitor="val/R@1", mode="max", resume=resume is not None)
    if rank() != 0:
        return Trained(run=run, validation=None, plots=[])

    load_weights(module, result.best)
    model.eval().to(pick_device(config.trainer.devices))
    model.set_means(measure_means(model, data["train"], batch_size=config.data.batch_size, reporter=reporter))
    Aligner(model, config).save_pretrained(run.folder("model"))
    validation = score_samples(model, samples.splits["val"], config, cache=cache, reporter=reporter, name="val")
    counts = {"epochs": result.epochs, "steps": result.steps, "skipped": samples.skipped}
    run.write_result(run.result | counts | {"val": validation.as_dict()})  # keep earlier scores on test
    run.register_once({"model": config.label, "seed": config.trainer.seed, "split": "val"} | validation.metrics)
    write_card(config, run, validation)
    return Trained(run=run, validation=validation, plots=draw_run(run))


def check_samples(config: Config, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Raise DataError if a split is too small, or lacks a modality or a pair that the configuration asks for."""
    for split, purpose in (("train", "contrastive training"), ("val", "selection")):
        if len(splits[split]) < 2:
            hint = "" if split == "train" else "; set data.hold_out=N to use training samples"
            raise DataError(
                f"{config.data.root}: {len(splits[split])} sample(s) in {split}: {purpose} needs at least 2{hint}"
            )
    if config.data.batch_size > len(splits["train"]):
        raise DataError(
            f"data.batch_size={config.data.batch_size} is more than the {len(splits['train'])} training samples: "
            f"set data.batch_size to at most {len(splits['train'])}"
        )
    section = {"image": "vision", "text": "text", "audio": "audio"}
    for modality in config.encoders.modalities:
        if not any(sample.has(modality) for sample in splits["train"]):
            raise DataError(
                f"{config.data.root}: no training sample has {modality}: give some, or set "
                f"encoders.{section[modality]}.name=null"
            )
    for split in ("train", "val"):
        for first, second in config.pairs:
            found = sum(sample.has(first) and sample.has(second) for sample in splits[split])
            if found < 2 and split == "train":
                raise DataError(
                    f"{config.data.root}: {found} training sample(s) with {first} and {second}: alignment of the pair "
                    f"needs at least 2; set loss.{first}_{second}=0 to leave it out"
                )
        if not any(
            sample.has(first) and sample.has(second) for sample in splits[split] for first, second in config.pairs
        ):
            raise DataError(f"{config.data.root}: no sample of {split} has two of the modalities of a pair")


def prepare_split(
    model: MultimodalAlignmentModel,
    samples: Sequence[Sample],
    config: Config,
    *,
    cache: FeatureCache,
    reporter: Reporter,
    name: str,
) -> SplitData:
    """Return a split with the inputs of every encoder; features of frozen ones are computed or read from the cache."""
    sources = {
        modality: read_inputs(
            model.encoder_of(modality),
            items,
            trains=config.encoders.of(modality).trains,
            cache=cache,
            reporter=reporter,
            what=f"{modality} features of the {name} split",
        )
        for modality, items in collect_items(samples).items()
        if modality in model.modalities
    }
    return SplitData(samples, sources, seed=config.trainer.seed)


def measure_means(
    model: MultimodalAlignmentModel, data: SplitData, *, batch_size: int, reporter: Reporter
) -> dict[str, Tensor]:
    """Return the mean (D,) of the unit embeddings of each modality, and of the fusion, over a split."""
    pooled = {
        modality: embed_inputs(
            model, modality, source, batch_size=batch_size, reporter=reporter, what=f"mean of {modality} embeddings"
        )
        for modality, source in data.sources.items()
    }
    means = {modality: normalize(rows_RD, dim=-1).mean(dim=0) for modality, rows_RD in pooled.items()}
    if model.fusion is not None:
        first = data.choose_captions(None)
        rows_N = {name: data.choose_items(name, first) for name in model.fusion.modalities}
        device = model.device
        fused_ND = model.fusion(
            {name: pooled[name][rows.clamp_min(0)].to(device) for name, rows in rows_N.items()},
            {name: (rows >= 0).to(device) for name, rows in rows_N.items()},
        )
        means[model.fusion.name] = normalize(fused_ND.detach().float(), dim=-1).mean(dim=0).cpu()
    return means


def write_card(config: Config, run: Run, validation: Evaluation) -> Path:
    """Write the run's README.md, a model card."""
    results = {name: round(value, 4) for name, value in validation.metrics.items() if name.endswith("R@1")}
    widths = ", ".join(map(str, config.mrl.widths))
    return run.write_model_card(
        title=f"{run.name}: one space for {', '.join(config.encoders.modalities)}",
        summary=(
            f"{config.label}, aligned by edgeglass on {Path(str(config.data.root)).name} at the widths {widths}. Mean "
            f"R@1 on the validation split: {validation.metrics['R@1']:.3f}, over {validation.samples} samples. The "
            "weights were selected on that split: score another one with `edgeglass eval`."
        ),
        results=results,
        usage=(
            "from edgeglass import Aligner, Index\n\n"
            f'aligner = Aligner.from_pretrained("{run.path.as_posix()}")\n'
            'vectors = aligner.encode(texts=["a red cup"], dim=128)\n'
            'for hit in Index.build(aligner, "photos/", "index/").search("a red cup", k=5):\n'
            "    print(hit.similarity, hit.path)"
        ),
        tags=["multimodal-alignment", "matryoshka", "audio"],
    )
