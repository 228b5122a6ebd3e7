"""The LightningModule and the LightningDataModule of alignment; `experiment.train` runs them.

Shapes: B samples of a batch, N samples of a split, R items of a modality, D width.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clip_common.devices import divide_batch, gather_from_ranks
from clip_common.training import ResumableLoader, ShuffledBatchSampler, optimizer_and_schedule
from edgeglass.config import MODALITIES, Config
from edgeglass.models.alignment import AlignmentModelOutput, MultimodalAlignmentModel
from edgeglass.scoring.embedding import collect_split
from edgeglass.scoring.evaluation import evaluate
from edgeglass.scoring.features import move_inputs
from edgeglass.training.batches import Batch, BatchMaker, SampleDataset, SplitData
from edgeglass.training.corpus import Corpus
from edgeglass.training.losses import AlignmentLoss, CorpusAlignmentLoss

Part = dict[str, range]
"""Items of each modality that are embedded together in validation."""
Share = TypeVar("Share")


class AlignmentModule(L.LightningModule):
    """Training steps, and retrieval over the whole validation split at the end of each epoch.

    Args:
        model: Encoders, fusion and loss.
        config: The run's configuration.
        data: `train` and `val`.

    Raises:
        ValueError: `loss.negatives=corpus` with an encoder that trains.
    """

    def __init__(self, model: MultimodalAlignmentModel, config: Config, data: dict[str, SplitData]) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.data = data
        assert isinstance(model.loss, AlignmentLoss)
        self.loss = model.loss
        self.weight_of_widths = config.loss.clip + config.loss.mrl * (len(config.mrl.widths) - 1)
        self.contrastive_chance = math.log(config.data.batch_size)
        self.corpus: Corpus | None = None
        if isinstance(self.loss, CorpusAlignmentLoss):
            self.corpus = Corpus(model, data["train"], every=config.loss.corpus_every)
        self.validated: list[tuple[Tensor, ...]] = []

    def configure_optimizers(self) -> dict[str, Any]:
        return optimizer_and_schedule(self, self.config.optim)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors of a batch; parts of the validation split are made on the device."""
        return batch.to(device) if isinstance(batch, Batch) else batch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self.compute(batch)
        assert output.loss is not None
        self.log("train/loss", output.loss, prog_bar=True)
        self.log_dict({f"train/loss/{pair}": value for pair, value in output.losses.items()})
        if output.losses and self.weight_of_widths:
            mean = torch.stack(list(output.losses.values())).mean() / self.weight_of_widths
            self.log("train/loss_contrastive", mean)
        self.log_dict({f"train/temperature/{pair}": 1 / scale.detach() for pair, scale in output.scales.items()})
        return output.loss

    def compute(self, batch: Batch) -> AlignmentModelOutput:
        """Return the embeddings and the loss of a batch, against itself or against the training set."""
        if self.corpus is None:
            return self.model(
                batch.inputs.get("image"),
                batch.inputs.get("text"),
                batch.inputs.get("audio"),
                present=batch.present,
                captions=batch.captions_B,
                groups=batch.groups_B,
            )
        # here and not when an epoch starts: a run that resumes inside an epoch does not start it
        self.corpus.set_epoch(0 if self.config.trainer.overfit_batches is not None else self.current_epoch)
        embeddings, columns = self.corpus.columns(batch)
        candidates = {name: math.log(max(1, len(one.embeddings_CD))) for name, one in columns.items()}
        chances = [(candidates[first] + candidates[second]) / 2 for first, second in self.loss.pairs]
        self.contrastive_chance = sum(chances) / len(chances)
        embeddings, present = self.model.fuse(embeddings, batch.present)
        assert isinstance(self.loss, CorpusAlignmentLoss)
        found = self.loss.against(
            embeddings,
            columns,
            present=present,
            captions=batch.captions_B,
            groups=batch.groups_B,
            samples=batch.samples_B,
        )
        return AlignmentModelOutput(found.loss, found.losses, embeddings, {}, self.loss.scale_of_pairs())

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Step, then clamp the temperatures, so that a checkpoint holds both."""
        super().optimizer_step(*arguments, **keywords)
        self.loss.clamp_temperatures()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.corpus is not None:
            checkpoint["corpus"] = self.corpus.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.corpus is not None and "corpus" in checkpoint:
            self.corpus.load_state_dict(checkpoint["corpus"])

    def validation_step(self, part: Part, batch_idx: int) -> None:
        for modality, rows in part.items():
            inputs = move_inputs(self.data["val"].sources[modality].batch(rows), self.device)
            pooled_PD = self.model.encoder_of(modality)(inputs).pooled.float().cpu()
            number = torch.full((len(rows),), MODALITIES.index(modality))
            self.validated.append((number, torch.tensor(rows), pooled_PD))

    def on_validation_epoch_end(self) -> None:
        number_R, row_R, pooled_RD = map(torch.cat, zip(*gather_from_ranks(self.validated), strict=True))
        self.validated = []
        data = self.data["val"]
        pooled = {}
        for modality in data.items:
            mine = number_R == MODALITIES.index(modality)
            if mine.any():
                rows_RD = pooled_RD[mine]
                # overfitting and quick runs embed only some items; those that are missing stay zero
                whole_RD = rows_RD.new_zeros(len(data.items[modality].sources), rows_RD.shape[1])
                whole_RD[row_R[mine]] = rows_RD
                pooled[modality] = whole_RD
        items = {modality: data.items[modality] for modality in pooled}
        split = collect_split(self.model, pooled, items, count=len(data.samples), centre=False)
        found = evaluate(
            split, pairs=list(self.config.pairs), widths=[self.model.width], ceilings={}, samples=len(data.samples)
        )
        recalls = {name: value for name, value in found.metrics.items() if "R@" in name and "M" not in name}
        self.log_dict({f"val/{name}": value for name, value in recalls.items()})
        self.log("val/loss", self.validation_loss(pooled))

    @torch.no_grad()
    def validation_loss(self, pooled: dict[str, Tensor]) -> Tensor:
        """Return the training loss on the split, each sample with its first caption, in batches of the training size.

        With `loss.negatives=corpus` it is the loss within the batch too: the split is not part of the corpus.
        """
        data = self.data["val"]
        count = len(data.samples)
        size = min(self.config.data.batch_size, count)
        captions_N = data.choose_captions(None)
        losses = []
        rank, world = self.trainer.global_rank, self.trainer.world_size
        for start in range(0, count - size + 1, size):
            rows_B = torch.arange(start + rank, start + size, world)
            embeddings, present = {}, {}
            for modality, rows_RD in pooled.items():
                first_B = data.choose_items(modality, captions_N)[rows_B]
                embeddings[modality] = rows_RD[first_B.clamp_min(0)].to(self.device)
                present[modality] = (first_B >= 0).to(self.device)
            embeddings, present = self.model.fuse(embeddings, present)
            found = AlignmentLoss.forward(
                self.loss,
                embeddings,
                present=present,
                captions=captions_N[rows_B].to(self.device),
                groups=data.groups_N[rows_B].to(self.device),
            )
            losses.append(found.loss)
        return torch.stack(losses).mean()

    def describe_batch(self, batch: Batch) -> str:
        """Return the names of the samples of a batch, for the message about a loss that is not finite."""
        return ", ".join(batch.names)


class AlignmentData(L.LightningDataModule):
    """Loaders of the training and validation splits; each rank loads its own rows."""

    def __init__(self, data: dict[str, SplitData], config: Config) -> None:
        super().__init__()
        self.data = data
        self.config = config

    def train_dataloader(self) -> ResumableLoader:
        assert self.trainer is not None
        settings, world = self.config.data, self.trainer.world_size
        count = len(self.data["train"].samples)
        sampler = ShuffledBatchSampler(
            count,
            batch_size=divide_batch(settings.batch_size, world=world),
            seed=self.config.trainer.seed,
            rank=self.trainer.global_rank,
            world=world,
        )
        return ResumableLoader(
            SampleDataset(count),
            batch_sampler=sampler,
            collate_fn=BatchMaker(self.data["train"]),
            num_workers=settings.workers,
            pin_memory=False,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        data, size = self.data["val"], self.config.data.batch_size
        counts = {modality: len(data.items[modality].sources) for modality in data.sources}
        parts: list[Part] = [
            {name: range(start, min(start + size, count)) for name, count in counts.items() if start < count}
            for start in range(0, max(counts.values()), size)
        ]
        mine = share_parts(parts, rank=self.trainer.global_rank, world=self.trainer.world_size)
        return DataLoader(mine, batch_size=None, collate_fn=lambda part: part)  # type: ignore[arg-type]


def share_parts(parts: Sequence[Share], *, rank: int, world: int) -> list[Share]:
    """Return this rank's parts; every rank gets as many, the last ones again if need be."""
    each = -(-len(parts) // world)
    return [parts[min(place, len(parts) - 1)] for place in range(rank, each * world, world)]
