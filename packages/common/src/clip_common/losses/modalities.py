"""Contrastive alignment of any number of modalities, pair by pair; samples may lack some of them.

Legend: B samples on this process, D width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch import distributed as dist

from clip_common.arrays import as_tensor
from clip_common.losses.infonce import Form, InfoNCE, contrastive_loss
from clip_common.losses.temperature import LogitScale


@dataclass(frozen=True)
class ModalitiesOutput:
    """The weighted sum, and the unweighted loss of each pair by its name, "first-second"."""

    loss: Tensor
    losses: dict[str, Tensor]


class PairwiseModalities(nn.Module):
    """Σ_p weight_p · contrastive_loss(embeddings of p's first modality, of its second) over pairs p of modalities.

    A pair uses the samples that have both of its modalities. Each pair has its own temperature.

    With several processes a pair takes part if any process has a sample for it; the others join with no rows, because a
    process that skips a collective would hang the rest. Temperatures and embeddings that take no part get a zero
    gradient, as DDP requires.

    Args:
        pairs: The weight of each pair of modality names.
        form: The loss of every pair.
        init: Log-scale that each temperature starts from.
        learned: False fixes the temperatures.

    Example:
        >>> loss = PairwiseModalities({("image", "text"): 1.0, ("audio", "text"): 1.0, ("image", "audio"): 0.5})
        >>> rows = {"image": image_BD, "text": text_BD, "audio": audio_BD}
        >>> loss(rows, present={"audio": has_audio_B}).loss.backward()
    """

    def __init__(
        self,
        pairs: Mapping[tuple[str, str], float],
        *,
        form: Form | None = None,
        init: float = math.log(1 / 0.07),
        learned: bool = True,
    ) -> None:
        super().__init__()
        if not pairs:
            raise ValueError("pairs is empty: name at least two modalities, such as {('image', 'text'): 1.0}")
        self.pairs = dict(pairs)
        self.form = form or InfoNCE()
        self.scales = nn.ModuleDict({_name(pair): LogitScale(init=init, learned=learned) for pair in self.pairs})

    def forward(
        self,
        embeddings: Mapping[str, Tensor | ArrayLike],
        *,
        present: Mapping[str, Tensor | ArrayLike] | None = None,
        exclude: Tensor | ArrayLike | None = None,
        positive: Tensor | ArrayLike | Mapping[tuple[str, str], Tensor | ArrayLike] | None = None,
        form: Form | None = None,
    ) -> ModalitiesOutput:
        """Compute the loss of a batch.

        Args:
            embeddings: (B, D) of every modality; rows of samples that lack it are ignored. Arrays and nested lists are
                taken too, here and below.
            present: (B,) bools for modalities that some samples lack; modalities not named are present in all.
            exclude: (B,) ids as in `contrastive_loss`.
            positive: (B,) ids as in `contrastive_loss`, of all pairs, or by pair; a pair that is not named has none.
            form: In place of the module's own.

        Returns:
            The loss, and the loss of each pair that took part.

        Raises:
            ValueError: A modality is missing or unknown, or numbers of rows differ.
        """
        device = next((one.device for one in embeddings.values() if isinstance(one, Tensor)), None)
        given = {name: as_tensor(one, name, device=device) for name, one in embeddings.items()}
        here = {name: as_tensor(one, f"present {name}", device=device) for name, one in (present or {}).items()}
        hidden = None if exclude is None else as_tensor(exclude, "exclude", device=device)
        by_pair: Mapping[tuple[str, str], Any] = (
            positive if isinstance(positive, Mapping) else dict.fromkeys(self.pairs, positive)
        )
        shared = {
            pair: None if ids is None else as_tensor(ids, "positive", device=device) for pair, ids in by_pair.items()
        }
        named = {f"positive of {_name(pair)}": ids for pair, ids in shared.items()}
        _check(given, present=here, ids={"exclude": hidden} | named)
        missing = sorted({name for pair in self.pairs for name in pair} - set(given))
        if missing:
            raise ValueError(
                f"no embeddings of {', '.join(missing)}: give rows of any content and mark them absent in `present`"
            )
        rows = [_rows_of(pair, given, here) for pair in self.pairs]
        takes_part = _anywhere([len(found) > 0 for found in rows], device=rows[0].device)

        # Adds zero, but keeps every embedding and temperature in the graph.
        total = torch.stack([embedding[:0].sum() for embedding in given.values()]).sum()
        total = total + 0.0 * torch.stack([scale() for scale in self.scales.values()]).sum()
        losses = {}
        for pair, found, joins in zip(self.pairs, rows, takes_part, strict=True):
            if joins:
                ids = shared.get(pair)
                losses[_name(pair)] = contrastive_loss(
                    given[pair[0]][found],
                    given[pair[1]][found],
                    scale=self.scales[_name(pair)](),
                    form=form or self.form,
                    exclude=None if hidden is None else hidden[found],
                    positive=None if ids is None else ids[found],
                )
                total = total + self.pairs[pair] * losses[_name(pair)]
        return ModalitiesOutput(total, losses)


def _name(pair: tuple[str, str]) -> str:
    return "-".join(pair)


def _check(
    embeddings: Mapping[str, Tensor], *, present: Mapping[str, Tensor], ids: Mapping[str, Tensor | None]
) -> None:
    unknown = sorted(set(present) - set(embeddings))
    if unknown:
        raise ValueError(f"present names unknown modalities {', '.join(unknown)}; known: {', '.join(embeddings)}")
    masks = {f"present of {name}": mask for name, mask in present.items()}
    named = [*embeddings.items(), *masks.items(), *ids.items()]
    sizes = [(name, len(tensor)) for name, tensor in named if tensor is not None]
    if len({size for _, size in sizes}) > 1:
        counts = ", ".join(f"{size} of {name}" for name, size in sizes)
        raise ValueError(f"every sample has a row of each modality, a mask and an id, got {counts}: give B of each")


def _rows_of(pair: tuple[str, str], embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """Return indices of the samples that have both modalities."""
    first_BD = embeddings[pair[0]]
    both_B = torch.ones(len(first_BD), dtype=torch.bool, device=first_BD.device)
    for name in pair:
        both_B = both_B & present[name] if name in present else both_B
    return both_B.nonzero()[:, 0]


def _anywhere(here: list[bool], *, device: torch.device) -> list[bool]:
    """Return which flags are true on at least one process; the same answer on all."""
    if not (dist.is_available() and dist.is_initialized()):
        return here
    found = torch.tensor(here, dtype=torch.int64, device=device)
    dist.all_reduce(found)
    return [count > 0 for count in found.tolist()]
