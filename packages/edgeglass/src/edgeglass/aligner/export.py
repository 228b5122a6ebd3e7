"""Export a model as a stock SentenceTransformer: what has a counterpart there, and what is refused.

export_model(model, config, Path("shared"))
SentenceTransformer("shared").encode(["a red ball"])      # without this package
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from clip_common.backbones.sentence_export import ExportBranch, format_usage, write_sentence_transformer
from clip_common.backbones.trunk import Trunk
from clip_common.errors import check_list
from clip_common.runs.files import write_new_folder
from edgeglass.config import Config
from edgeglass.models.adapters import fold_adapters
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.vision_tokens import SelectedTokens

SECTIONS = {"image": "vision", "text": "text", "audio": "audio"}


def export_model(
    model: MultimodalAlignmentModel, config: Config, folder: Path, *, modalities: Sequence[str] | None = None
) -> Path:
    """Write a model as a folder that sentence-transformers loads without code of its own; whole or not at all.

    The folder is a `Router`: strings, pictures and samples each take the route of their modality. Encoders that were
    trained are written as they are now, adapters merged. The fusion is left out.

    Args:
        model: Trained.
        config: Its configuration.
        folder: Must not exist.
        modalities: Some of the model's modalities; None: all.

    Returns:
        The folder.

    Raises:
        ValueError: One line: the folder exists, or a part without a counterpart in sentence-transformers, with what to
            choose instead. Nothing is written.
    """
    if modalities is not None:
        check_list(modalities, "modalities", empty=False)
    for modality in modalities or ():
        model.encoder_of(modality)  # raises for one that the model has not
    chosen = [name for name in model.modalities if modalities is None or name in modalities]
    for modality in chosen:
        check_exportable(config, modality, among=chosen)
    branches = {modality: _describe_branch(model, config, modality) for modality in chosen}
    with write_new_folder(folder) as draft:
        write_sentence_transformer(branches, draft)
        (draft / "README.md").write_text(format_card(model, config, chosen), encoding="utf-8")
    return folder


def check_exportable(config: Config, modality: str, *, among: Sequence[str]) -> None:
    """Raise ValueError if the configuration of a modality has no counterpart in sentence-transformers.

    Args:
        config: Of the model.
        modality: `image`, `text` or `audio`.
        among: Modalities that are exported, for the advice in the message.
    """
    others = ",".join(name for name in among if name != modality)
    instead = f", or export {others} alone (--modalities {others})" if others else ""
    pooling = getattr(config.encoders.of(modality), "pooling", "own")
    if pooling in ("attention", "perceiver"):
        poolings = "mean or own" if modality == "image" else "mean"
        raise ValueError(
            f"export: encoders.{SECTIONS[modality]}.pooling={pooling} has no counterpart in sentence-transformers: "
            f"align with pooling={poolings}{instead}"
        )
    if modality == "audio" and config.audio.context != "full":
        raise ValueError(
            f"export: audio.context={config.audio.context} cuts Whisper's table of positions for each sound, but "
            f"transformers runs Whisper on its whole window only: align with audio.context=full{instead}"
        )


def format_card(model: MultimodalAlignmentModel, config: Config, modalities: Sequence[str]) -> str:
    """Return the README of an exported folder as Markdown."""
    rows = [f"| {name} | `{_name_encoder(model, name)}` |" for name in modalities]
    notes = [f"Unit embeddings of {model.width} numbers."]
    if len(model.widths) > 1:
        narrow = ", ".join(map(str, model.widths[1:]))
        notes += [
            f"Prefixes of {narrow} numbers were trained too: `encode(…, truncate_dim={model.widths[-1]}, "
            "normalize_embeddings=True)`."
        ]
    if len(modalities) > 1:
        notes += ["One call takes inputs of one modality."]
    if config.embeddings.centre:
        notes += ["The mean of each modality over the training set is subtracted."]
    if "image" in modalities:
        notes += ["Pictures: paths, or PIL images that are upright and RGB."]
        feed: Any = model.encoder_of("image").encoder.feed
        if feed.preprocess.resize_mode == "shortest" and feed.preprocess.corner == "even":
            notes += [
                "The centre crop of transformers rounds its corner down, that of edgeglass to the nearest pixel: for a "
                "quarter of the aspect ratios they are a pixel apart. Square pictures agree exactly."
            ]
    if "audio" in modalities:
        encoder: Any = model.encoder_of("audio").encoder
        notes += [
            f"Sounds: 16 kHz, mono; only their first {encoder.spec.window_seconds:g} s are heard. Load the model in "
            "float32."
        ]
    if model.fusion is not None:
        notes += [f"The fusion of {' and '.join(model.fusion.modalities)} is not part of this folder."]
    parts = [
        "---\nlibrary_name: sentence-transformers\ntags:\n- sentence-transformers\n- feature-extraction\n---",
        f"# {config.name or 'edgeglass'}: {', '.join(modalities)} in one space",
        "\n".join(["| modality | encoder |", "|---|---|", *rows]),
        f"```python\n{format_usage(modalities)}\n```",
        "\n".join(f"- {note}" for note in notes),
    ]
    return "\n\n".join(parts) + "\n"


def _name_encoder(model: MultimodalAlignmentModel, modality: str) -> str:
    """Return the name of an encoder; of one in a folder, the folder's name alone."""
    name = model.encoder_of(modality).encoder.spec.name
    return Path(name).name if Path(name).is_dir() else name


def _describe_branch(model: MultimodalAlignmentModel, config: Config, modality: str) -> ExportBranch:
    encoder = model.encoder_of(modality)
    trunk: Trunk = encoder.trunk
    if config.encoders.of(modality).lora.rank:
        trunk = deepcopy(trunk)
        fold_adapters(trunk)
    settings: dict[str, Any] = {}
    if isinstance(trunk, SelectedTokens):
        if not trunk.own:
            settings["pooling"] = "patches" if trunk.select == "patch" else "tokens"
            settings["layer"] = None if trunk.last else trunk.layer
        trunk = trunk.trunk
    mean_D = model.means[modality] if config.embeddings.centre else None
    return ExportBranch(trunk, encoder.encoder.feed, encoder.head.projector, mean=mean_D, **settings)
