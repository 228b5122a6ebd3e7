"""The LightningModule and the LightningDataModule of vision-language training; `vlm_experiment.train_vlm` runs them."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clip_common.devices import divide_batch, gather_from_ranks
from clip_common.loader import ShuffledBatchSampler
from clip_common.training import ResumableLoader, optimizer_and_schedule
from edgeglass.config import VlmConfig
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.training.batches import SampleDataset
from edgeglass.training.modules import share_parts
from edgeglass.training.vlm_batches import VlmBatch, VlmBatchMaker, VlmSplit


class VlmModule(L.LightningModule):
    """Training steps, and loss and exact answers on the whole validation split at the end of each epoch.

    Args:
        model: The model.
        config: The run's configuration.
        data: `train` and `val`.
    """

    def __init__(self, model: QwenVLM, config: VlmConfig, data: dict[str, VlmSplit]) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.data = data
        self.validated: list[tuple[Tensor, ...]] = []

    def configure_optimizers(self) -> dict[str, Any]:
        own = self.config.prefix.lr
        rates = {} if own is None else {"model.vision_proj.": own}
        return optimizer_and_schedule(self, self.config.optim, rates=rates)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors of a batch; parts of the validation split are made on the device."""
        return batch.to(device) if isinstance(batch, VlmBatch) else batch

    def training_step(self, batch: VlmBatch, batch_idx: int) -> Tensor:
        output = self.model(batch.rows, batch.images)
        self.log("train/loss", output.loss, prog_bar=True)
        self.log("train/accuracy", output.right_S.float().mean())
        if len(output.loops) > 1:
            first = self.config.trm.steps - len(output.loops) + 1  # a recursive decoder has no answer before loop 1
            self.log_dict({f"train/loss/loop_{first + number}": loss for number, loss in enumerate(output.loops)})
        self.log("train/tokens", batch.rows.valid().sum().float())
        return output.loss * self.share_of_tokens(len(output.targets_N))

    def share_of_tokens(self, count: int) -> Tensor | float:
        """Return the weight that makes the mean over ranks of their losses the mean over all supervised tokens."""
        if self.trainer.world_size == 1:
            return 1.0
        counts = self.all_gather(torch.tensor(float(count), device=self.device))
        assert isinstance(counts, Tensor)
        return count * self.trainer.world_size / counts.sum()

    def validation_step(self, part: range, batch_idx: int) -> None:
        batch = self.data["val"].batch(part, row_length=self.config.data.packed_length).to(self.device)
        output = self.model(batch.rows, batch.images)
        self.validated.append((torch.tensor(part), output.losses_S.float().cpu(), output.right_S.cpu()))

    def on_validation_epoch_end(self) -> None:
        number_S, loss_S, right_S = map(torch.cat, zip(*gather_from_ranks(self.validated), strict=True))
        self.validated = []
        # ranks may repeat parts, to have as many as the others
        first_S = torch.zeros(int(number_S.max()) + 1, dtype=torch.long)
        first_S[number_S] = torch.arange(len(number_S))
        kept = first_S[number_S.unique()]
        self.log("val/loss", loss_S[kept].mean())
        self.log("val/accuracy", right_S[kept].float().mean())

    def describe_batch(self, batch: VlmBatch) -> str:
        """Return the names of the conversations of a batch, for the message about a loss that is not finite."""
        return ", ".join(batch.names)


class VlmData(L.LightningDataModule):
    """Loaders of the training and validation splits; each rank loads its own rows."""

    def __init__(self, data: dict[str, VlmSplit], config: VlmConfig) -> None:
        super().__init__()
        self.data = data
        self.config = config

    def train_dataloader(self) -> ResumableLoader:
        assert self.trainer is not None
        settings, world, train = self.config.data, self.trainer.world_size, self.data["train"]
        sampler = LengthBatchSampler(
            len(train.units),
            batch_size=divide_batch(settings.batch_size, world=world),
            seed=self.config.trainer.seed,
            rank=self.trainer.global_rank,
            world=world,
            lengths=None if settings.packing else train.lengths(),
        )
        maker = VlmBatchMaker(
            train,
            row_length=settings.packed_length,
            per_image=settings.per_image,
            seed=self.config.trainer.seed,
        )
        return ResumableLoader(
            SampleDataset(len(train.units)),
            batch_sampler=sampler,
            collate_fn=maker,
            num_workers=settings.workers,
            pin_memory=False,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        count, size = len(self.data["val"].conversations), self.config.data.batch_size
        parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
        mine = share_parts(parts, rank=self.trainer.global_rank, world=self.trainer.world_size)
        return DataLoader(mine, batch_size=None, collate_fn=lambda part: part)  # type: ignore[arg-type]


class LengthBatchSampler(ShuffledBatchSampler):
    """Shuffled batches, of rows of similar lengths if these are given: padding then costs little.

    Each stretch of fifty global batches is sorted by length and cut into batches, which are shuffled.

    Args:
        n: Rows.
        lengths: Length of each; None: batches as `ShuffledBatchSampler` makes them.
        keywords: See `ShuffledBatchSampler`.
    """

    STRETCH = 50

    def __init__(self, n: int, *, lengths: list[int] | None, **keywords: Any) -> None:
        super().__init__(n, **keywords)
        self.lengths_N = None if lengths is None else torch.tensor(lengths)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the row order of an epoch as consecutive global batches; surplus rows at the end are dropped."""
        order_N = super().order(generator)
        if self.lengths_N is None:
            return order_N
        size = self.batch_size * self.world
        batches = [
            batch
            for stretch in order_N.split(size * self.STRETCH)
            for batch in stretch[self.lengths_N[stretch].argsort(stable=True)].split(size)
        ]
        whole = [batch for batch in batches if len(batch) == size]
        rest = [batch for batch in batches if len(batch) < size]
        places = torch.randperm(len(whole), generator=generator).tolist()
        return torch.cat([*(whole[place] for place in places), *rest])
