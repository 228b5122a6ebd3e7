"""How much gradient reaches each trained module, with and without cross-attention beside it.

`alone` is the norm of a module's gradient without the other kind of module: adapters without cross-attention, or
cross-attention with adapters left out. `together` is the norm with both, as in training. Their ratio is the share
that is left: unscaled cross-attention is many times as large as the tokens it is added to, and starves the adapters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from aaclip.config import Config
from aaclip.data import AnomalyDataset, Batch, Record, check_masks, collate, read_dataset
from aaclip.data.selection import shuffle_records
from aaclip.detector.files import load_trained, read_detector
from aaclip.models import AnomalyModel
from aaclip.models.backbone import load_backbone, make_model, make_preprocess
from aaclip.models.prompts import load_prompts
from aaclip.report.plots import draw_gradients
from aaclip.training.contexts import make_running_contexts, read_image_contexts, read_text_contexts
from aaclip.training.fits import Job, embed_training_classes
from aaclip.training.modules import ImageStage, TextStage
from clip_common.backbones import Bundle
from clip_common.config import apply_overrides
from clip_common.devices import pick_device
from clip_common.reporting import Progress
from clip_common.runs import MetricsCsv, write_atomically
from clip_common.runs.files import write_text
from clip_common.tables import markdown_table
from clip_common.training.determinism import seed_everything

MODES = {
    "unscaled": ("cross_attention.scale=fixed", "cross_attention.weight=1", "cross_attention.norm_match=false"),
    "fixed 0.1": ("cross_attention.scale=fixed", "cross_attention.weight=0.1", "cross_attention.norm_match=true"),
    "gate": ("cross_attention.scale=gate", "cross_attention.norm_match=true"),
}
"""Ways to scale cross-attention, as overrides."""
CROSS = "cross-attention"


@dataclass(frozen=True)
class GradientRow:
    """Gradient of one module in one mode: means over batches of the L2 norm over its weights.

    Attributes:
        mode: How cross-attention is scaled.
        module: Name.
        alone: Norm without the other kind of module.
        together: Norm with both.
    """

    mode: str
    module: str
    alone: float
    together: float

    @property
    def share(self) -> float | None:
        """`together` / `alone`; None if the module has no gradient alone, like weights behind a closed gate."""
        return self.together / self.alone if self.alone else None


@dataclass(frozen=True)
class Gradients:
    """Result of `inspect_gradients`.

    Attributes:
        rows: By mode and module.
        images: Number of images.
        gates: Gate of the text and of the image cross-attention in the mode `gate`; 0 before training.
        files: gradients.csv, gradients.md and gradients.png.
    """

    rows: list[GradientRow]
    images: int
    gates: tuple[float, float]
    files: list[Path]


def inspect_gradients(
    source: str | Path,
    root: Path,
    *,
    format: str = "auto",
    images: int = 32,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Gradients:
    """Measure the gradients of both stages' losses on labelled images, without dropout or augmentation.

    The weights are those of the run, in every mode. A run without cross-attention gets an untrained one.

    Args:
        source: A run or a saved detector.
        root: Folder of a labelled set.
        format: `auto`, or one of `aaclip.data.FORMATS`.
        images: Number of images, drawn at random from all splits.
        out: Folder of the results; default: inside the run.
        progress: Called as `progress(done, total)` with modes.

    Raises:
        ValueError: No such run, a set without images, or an anomalous image without a mask.
    """
    stored = read_detector(Path(source))
    records = shuffle_records(read_dataset(root, format=format).records, seed=stored.config.trainer.seed)[:images]
    check_masks(records)
    bundle = load_backbone(stored.config.backbone)
    rows, gates = [], (0.0, 0.0)
    for done, mode in enumerate(MODES):
        model, config = make_mode(bundle, stored.config, stored.state, mode, source=Path(source))
        rows += measure_mode(model, config, records, mode)
        if mode == "gate":
            own = model.state_dict()
            gates = (own["text_cross_attn.gate"].item(), own["image_cross_attn.gate"].item())
        if progress is not None:
            progress(done + 1, len(MODES))
    folder = out or Path(source) / f"gradients-{root.resolve().name}"
    note = (
        f"{Path(source).name} on {len(records)} images of {root.resolve().name}; gates {gates[0]:.3g}, {gates[1]:.3g}."
    )
    return Gradients(rows, len(records), gates, write_gradients(rows, folder, note=note))


def make_mode(
    bundle: Bundle, config: Config, state: Mapping[str, Tensor], mode: str, *, source: Path
) -> tuple[AnomalyModel, Config]:
    """Return a model with the weights of a run and with cross-attention scaled in one way, and its configuration."""
    on = ("cross_attention.enabled=true", "cross_attention.at_test=true")
    config = apply_overrides(config, [*on, *MODES[mode]])
    seed_everything(config.trainer.seed)
    model = make_model(bundle, config)
    own = model.state_dict()
    gates = ("text_cross_attn.gate", "image_cross_attn.gate")
    state = {name: tensor for name, tensor in state.items() if name not in gates or name in own}
    if any(name.startswith("text_cross_attn.") for name in state):  # a run with a fixed scale has no gate: a closed one
        state |= {name: own[name] for name in gates if name in own and name not in state}
    load_trained(model, state, source=source, start=True)
    return model.to(pick_device(config.trainer.devices)), config


def measure_mode(model: AnomalyModel, config: Config, records: Sequence[Record], mode: str) -> list[GradientRow]:
    """Return the gradients of every module: alone, and together."""
    adapters = measure_norms(model, config, records, attends=False)
    together = measure_norms(model, config, records, attends=True)
    with model.text_adapter.layers.left_out(), model.image_adapter.layers.left_out():
        attention = measure_norms(model, config, records, attends=True)
    return [
        GradientRow(mode, name, alone=(attention if CROSS in name else adapters)[name], together=norm)
        for name, norm in together.items()
    ]


def measure_norms(model: AnomalyModel, config: Config, records: Sequence[Record], *, attends: bool) -> dict[str, float]:
    """Return the mean over batches of the norm of each module's gradient, with or without cross-attention."""
    job = Job(config, "both", list(records), model, load_prompts(config.prompts))
    image_contexts = read_image_contexts(model, records, config) if attends else {}
    classes = embed_training_classes(job, image_contexts)
    contexts = read_text_contexts(model, list(classes), job.prompts) if attends else {}
    running = make_running_contexts(model, records, config) if attends else None
    size, preprocess = model.bundle.image.spec.image_size, make_preprocess(model.bundle, config.preprocess)
    dataset = AnomalyDataset(records, preprocess=preprocess, size=size, seed=0)
    found: dict[str, float] = {}
    contexts = {name: context_NF.to(model.device) for name, context_NF in contexts.items()}
    stages: list[TextStage | ImageStage] = [
        TextStage(model, config.stages.text, config.loss, prompts=job.prompts, contexts=running),
        ImageStage(model, config.stages.image, config.loss, classes=classes, contexts=contexts),
    ]
    for stage in stages:
        modules = list_modules(model, text=isinstance(stage, TextStage))
        for module in modules.values():
            module.requires_grad_(True)  # each stage froze the parts of the other when it was made
        stage.to(model.device).eval()
        batches: list[Batch] = list(
            DataLoader(dataset, batch_size=min(len(dataset), stage.stage.batch_size), collate_fn=collate)
        )
        for batch in batches:
            stage.zero_grad(set_to_none=True)
            stage.compute_losses(stage.transfer_batch_to_device(batch, model.device, 0))["loss"].backward()
            for name, module in modules.items():
                found[name] = found.get(name, 0.0) + measure_norm(module) / len(batches)
    return found


def list_modules(model: AnomalyModel, *, text: bool) -> dict[str, nn.Module]:
    """Return the modules that a stage trains, by name."""
    assert model.text_cross_attn is not None
    assert model.image_cross_attn is not None
    if text:
        layers: dict[str, nn.Module] = {
            f"text adapter {number}": layer for number, layer in enumerate(model.text_adapter.layers)
        }
        if model.text_adapter.tokens is not None:
            layers["learned tokens"] = model.text_adapter.tokens
        return {f"text {CROSS}": model.text_cross_attn, **layers, "text projection": model.text_adapter.final}
    layers = {f"image adapter {number}": layer for number, layer in enumerate(model.image_adapter.layers)}
    if model.image_adapter.detection is not None:
        layers["detection head"] = model.image_adapter.detection
    return {f"image {CROSS}": model.image_cross_attn, **layers, "heads": model.image_adapter.segmentation}


def measure_norm(module: nn.Module) -> float:
    """Return the L2 norm of the gradient of a module's weights."""
    grads = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return float(torch.cat(grads).norm()) if grads else 0.0


def format_gradients(rows: Sequence[GradientRow]) -> list[list[str]]:
    """Return rows of text, the heading first: for each module its norm alone, together, and the share, by mode."""
    by_module: dict[str, list[GradientRow]] = {}
    for row in rows:
        by_module.setdefault(row.module, []).append(row)
    heading = ["module", *(f"{mode}: {what}" for mode in MODES for what in ("alone", "together", "share"))]
    return [heading, *([name, *(cell for row in own for cell in _cells(row))] for name, own in by_module.items())]


def _cells(row: GradientRow) -> list[str]:
    share = "–" if row.share is None else f"{row.share:.3f}"
    return [f"{row.alone:.3g}", f"{row.together:.3g}", share]


def write_gradients(rows: Sequence[GradientRow], folder: Path, *, note: str) -> list[Path]:
    """Write gradients.csv, gradients.md and gradients.png, each whole or not at all."""
    files = [folder / f"gradients.{suffix}" for suffix in ("csv", "md", "png")]
    with write_atomically(files[0]) as temporary:
        MetricsCsv(temporary).extend({**vars(row), "share": row.share} for row in rows)
    heading, *table = format_gradients(rows)
    text = f"{note} Norms of gradients without the other kind of module, and with both.\n\n"
    write_text(files[1], text + markdown_table(heading, table, align=True) + "\n")
    shares: dict[str, dict[str, float | None]] = {
        mode: {row.module: row.share for row in rows if row.mode == mode} for mode in MODES
    }
    draw_gradients(shares, files[2])
    return files
