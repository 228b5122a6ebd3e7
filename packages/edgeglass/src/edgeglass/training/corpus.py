"""The training set as columns: the embeddings of all its items, against which the rows of a batch are compared.

Shapes: N samples, R items of a modality, C columns, B rows of a batch, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.scoring.features import CachedInputs, Inputs, move_inputs
from edgeglass.training.batches import Batch, SplitData
from edgeglass.training.losses import Columns

PART = 1024
"""Items embedded at a time; their activations are computed again in the backward."""


class Corpus:
    """Embeddings of the training set, fresh at every step or at most `every` steps old.

    Args:
        model: Its heads embed the features.
        data: The training set; its sources are features.
        every: Steps between embeddings of the whole set. At 1 gradients flow into all columns. Above 1 columns are
            constants, except those of the batch itself, which are always fresh.

    Raises:
        ValueError: An encoder trains, so that it has no features to embed the whole set from.
    """

    def __init__(self, model: MultimodalAlignmentModel, data: SplitData, *, every: int) -> None:
        live = [modality for modality, source in data.sources.items() if not isinstance(source, CachedInputs)]
        if live:
            raise ValueError(
                f"loss.negatives=corpus needs cached features, but the encoder of {live[0]} trains: freeze it without "
                "adapters, or use loss.negatives=batch"
            )
        self.model, self.data, self.every = model, data, every
        self.items: dict[str, Tensor] = {}
        self.age = 0
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        """Choose the captions that the samples show in this epoch."""
        if epoch != self.epoch:
            self.epoch, self.captions_N = epoch, self.data.choose_captions(epoch)

    def columns(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Columns]]:
        """Return the embeddings (B, D) of a batch by modality, and the columns of every modality and of the fusion."""
        if self.every == 1:
            items = {modality: self._embed_items(modality, source) for modality, source in self.data.sources.items()}
            own = {modality: items[modality][self._rows_of(modality, batch)] for modality in items}
        else:
            if not self.items or self.age >= self.every:
                with torch.no_grad():
                    self.items = {
                        modality: self._embed_items(modality, source) for modality, source in self.data.sources.items()
                    }
                self.age = 0
            self.age += 1
            own = {name: self.model.encoder_of(name)(inputs).pooled for name, inputs in batch.inputs.items()}
            items = {modality: self._replace(modality, own[modality], batch) for modality in self.items}
        return own, self._make_columns(items)

    def state_dict(self) -> dict[str, Any]:
        """Return the stored embeddings, which a resumed run cannot compute again: the heads have changed since."""
        return {"age": self.age, "items": self.items}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the stored embeddings."""
        self.age = state["age"]
        self.items = {name: rows.to(self.model.device) for name, rows in state["items"].items()}

    def _embed_items(self, modality: str, source: Inputs) -> Tensor:
        encoder, device = self.model.encoder_of(modality), self.model.device
        parts = []
        for start in range(0, len(source), PART):
            inputs = move_inputs(source.batch(range(start, min(start + PART, len(source)))), device)
            head = encoder.head
            parts.append(checkpoint(lambda inputs=inputs, head=head: head(*inputs)[0], use_reentrant=False))
        return torch.cat(parts)

    def _rows_of(self, modality: str, batch: Batch) -> Tensor:
        """Return the item (B,) of each sample of a batch; 0 for one that lacks the modality."""
        items_N = self.data.choose_items(modality, self.captions_N).clamp_min(0)
        return items_N.to(batch.samples_B.device)[batch.samples_B]

    def _replace(self, modality: str, own_BD: Tensor, batch: Batch) -> Tensor:
        """Return the stored embeddings of a modality with those of the batch in their places."""
        has_B = batch.present[modality]
        rows_B = self._rows_of(modality, batch)[has_B]
        return self.items[modality].index_put((rows_B,), own_BD[has_B].to(self.items[modality].dtype))

    def _make_columns(self, items: Mapping[str, Tensor]) -> dict[str, Columns]:
        data, device = self.data, self.model.device
        captions_N, groups_N = self.captions_N.to(device), data.groups_N.to(device)
        found = {}
        for modality, rows_RD in items.items():
            if modality == "text":
                owners_C = torch.tensor([owners[0] for owners in data.items["text"].owners()], device=device)
                ids_C = torch.arange(len(rows_RD), device=device)
                found["text"] = Columns(rows_RD, ids_C, groups_N[owners_C], owners_C)
            else:
                first_N = data.items[modality].first_N.to(device)
                has_C = (first_N >= 0).nonzero()[:, 0]
                found[modality] = Columns(rows_RD[first_N[has_C]], captions_N[has_C], groups_N[has_C], has_C)
        if self.model.fusion is not None:
            found[self.model.fusion.name] = self._fuse(items, captions_N, groups_N)
        return found

    def _fuse(self, items: Mapping[str, Tensor], captions_N: Tensor, groups_N: Tensor) -> Columns:
        """Return the fused embeddings of all samples that have any of the fused modalities."""
        fusion, device = self.model.fusion, self.model.device
        assert fusion is not None
        rows, present = {}, {}
        for modality in fusion.modalities:
            items_N = self.data.choose_items(modality, self.captions_N).to(device)
            rows[modality], present[modality] = items[modality][items_N.clamp_min(0)], items_N >= 0
        any_C = torch.stack(list(present.values())).any(dim=0).nonzero()[:, 0]
        fused_CD = fusion(
            {name: rows_ND[any_C] for name, rows_ND in rows.items()},
            {name: mask_N[any_C] for name, mask_N in present.items()},
        )
        return Columns(fused_CD, captions_N[any_C], groups_N[any_C], any_C)
