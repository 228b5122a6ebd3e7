"""The embeddings of a split, by modality, with what belongs to what.

Shapes: R rows of a modality, D shared width, N samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_common.features import FeatureCache
from clip_common.reporting import Reporter, silent
from edgeglass.config import Config
from edgeglass.data.items import Items, collect_items, find_groups
from edgeglass.data.records import Sample
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.scoring.features import embed_inputs, read_inputs

SUM = "sum"
"""Name of the query that adds the unit embeddings of several modalities."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """Unit embeddings of a split, float32 on the CPU.

    Attributes:
        vectors: (R, D) by modality: every image and sound once, every different caption once. Queries of several
            modalities, one for each sample that has them all, are in `fused`.
        owners: For each row of `vectors` the groups of samples that it belongs to: two rows match if they share one.
        fused: (R, D) of queries of several modalities: by the fusion of the model (`image+audio`), and their sum.
        fused_owners: As `owners`, for `fused`.
        pooled: (R, D) of each modality as the encoder gave them, neither centred nor normalised.
    """

    vectors: dict[str, Tensor]
    owners: dict[str, list[set[int]]]
    fused: dict[str, Tensor]
    fused_owners: dict[str, list[set[int]]]
    pooled: dict[str, Tensor]


def embed_split(
    model: MultimodalAlignmentModel,
    samples: Sequence[Sample],
    config: Config,
    *,
    cache: FeatureCache,
    reporter: Reporter = silent,
    name: str = "",
) -> EmbeddedSplit:
    """Embed every image, caption and sound of a split; the model must already be on its device.

    Args:
        model: In eval mode meanwhile.
        samples: The split.
        config: Which encoders train, the batch size, and whether embeddings are centred.
        cache: Features of frozen encoders.
        reporter: Shows progress.
        name: Of the split, for progress.

    Raises:
        ValueError: One line: an item that cannot be read.
    """
    items = {modality: one for modality, one in collect_items(samples).items() if modality in model.modalities}
    pooled = {}
    for modality, one in items.items():
        source = read_inputs(
            model.encoder_of(modality),
            one,
            trains=config.encoders.of(modality).trains,
            cache=cache,
            reporter=reporter,
            what=f"{modality} features of the {name} split",
        )
        pooled[modality] = embed_inputs(
            model,
            modality,
            source,
            batch_size=config.data.batch_size,
            reporter=reporter,
            what=f"embedding {modality}s of the {name} split",
        )
    return collect_split(model, pooled, items, count=len(samples), centre=config.embeddings.centre)


def collect_split(
    model: MultimodalAlignmentModel,
    pooled: dict[str, Tensor],
    items: Mapping[str, Items],
    *,
    count: int,
    centre: bool,
) -> EmbeddedSplit:
    """Return the unit embeddings of a split from the pooled ones of its items, and the fused queries.

    Args:
        model: Its means and its fusion are used.
        pooled: (R, D) by modality.
        items: Which samples they belong to.
        count: N, number of samples.
        centre: Subtract each modality's mean.
    """
    groups = find_groups(dict(items), count).tolist()
    device = model.device

    def unit(name: str, rows_RD: Tensor) -> Tensor:
        return model.embed(name, rows_RD.to(device), centre=centre).cpu()

    with torch.no_grad():
        vectors = {modality: unit(modality, rows_RD) for modality, rows_RD in pooled.items()}
        owners = {
            modality: [{groups[sample] for sample in samples} for samples in one.owners()]
            for modality, one in items.items()
        }
        fused, fused_owners = {}, {}
        inputs = ("image", "audio") if model.fusion is None else model.fusion.modalities
        if all(modality in items for modality in inputs):
            whole = [sample for sample in range(count) if all(items[modality].rows[sample] for modality in inputs)]
            first = {modality: items[modality].first_N[whole] for modality in inputs}
            belongs = [{groups[sample]} for sample in whole]
            name = "+".join(inputs)
            total_RD = torch.stack([vectors[modality][first[modality]] for modality in inputs]).sum(dim=0)
            fused[f"{name}, {SUM}"] = normalize(total_RD, dim=-1)
            fused_owners[f"{name}, {SUM}"] = belongs
            if model.fusion is not None and whole:
                rows = {modality: pooled[modality][first[modality]].to(device) for modality in inputs}
                fused[name] = unit(name, model.fusion(rows))
                fused_owners[name] = belongs
    return EmbeddedSplit(vectors, owners, fused, fused_owners, pooled)
