"""The LightningModule and the DataModule of videoclip; `experiment.fit_split` uses them.

B clips of a batch, K classes, D the width of the shared space.
"""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from clip_common.devices import divide_batch, gather_from_ranks
from clip_common.training import ResumableLoader, ShuffledBatchSampler, optimizer_and_schedule
from videoclip.config import Config
from videoclip.data import Batch, SubjectUniqueBatchSampler, VideoMapDataset, collate, number_subjects
from videoclip.models import Output, VideoAttentionCLIP, normalise
from videoclip.scoring.metrics import score_classification
from videoclip.training.losses import VideoClipLoss


class AlignmentModule(L.LightningModule):
    """The training step, and classification metrics over the whole validation split after each epoch.

    Args:
        model: Encoders, heads and classifier.
        config: The run's configuration.
    """

    def __init__(self, model: VideoAttentionCLIP, config: Config) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.loss = VideoClipLoss(config.loss, token_config=config.model)
        for part in find_idle_parts(model, config):
            part.requires_grad_(False)
        self.aligns = config.loss.clip_weight > 0
        if self.aligns:
            self.contrastive_log_b = math.log(config.data.batch_size)
        self.validated: list[tuple[Tensor, ...]] = []

    def configure_optimizers(self) -> dict[str, Any]:
        return optimizer_and_schedule(self, self.config.optim)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the tensors of a batch to a device."""
        return batch.to(device)

    def forward_batch(self, batch: Batch, *, align: bool) -> Output:
        """Run the model on a batch; compute embeddings only if `align`."""
        output: Output = self.model(normalise(batch.video_B3THW), batch.map_BCTHW, valid_B=batch.valid_B, align=align)
        return output

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        output = self.forward_batch(batch, align=self.aligns)
        losses = self.loss(
            output,
            map_BCTHW=batch.map_BCTHW,
            label_B=batch.label_B,
            subject_B=batch.subject_B,
            regions_B=batch.regions_B,
            scale=self.model.logit_scale(),
        )
        self.log("train/loss", losses.total, prog_bar=True)
        self.log_dict({f"train/loss_{name}": value for name, value in losses.parts.items()})
        return losses.total

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Step, then clamp the scale; within the step, so that a checkpoint after it holds the clamped scale."""
        super().optimizer_step(*arguments, **keywords)
        self.model.logit_scale.clamp_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output = self.forward_batch(batch, align=False)
        self.validated.append((output.logits.float().cpu(), batch.label_B.cpu()))

    def on_validation_epoch_end(self) -> None:
        logits_NK, label_N = map(torch.cat, zip(*gather_from_ranks(self.validated), strict=True))
        self.validated = []
        metrics = score_classification(logits_NK.argmax(dim=1), label_N, classes=self.config.model.model_class_num)
        self.log_dict({f"val/{name}": metrics[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")})
        self.log("val/loss", torch.nn.functional.cross_entropy(logits_NK, label_N))

    def describe_batch(self, batch: Batch) -> str:
        """Return the names of a batch's clips, for the message about a loss that is not finite."""
        return ", ".join(batch.clip_ids)


def find_idle_parts(model: VideoAttentionCLIP, config: Config) -> list[nn.Module]:
    """Return the parts of the model that the loss does not reach, to be frozen: DDP would wait for their gradients."""
    if config.loss.clip_weight:
        return []
    idle: list[nn.Module | None] = [model.video_projection, model.attn_projection, model.logit_scale]
    if config.model.clip_classifier_source == "video":
        idle.append(model.attn_encoder)
    if config.model.clip_classifier_source == "attn":
        idle += [model.video_encoder, model.map_gate]
    return [part for part in idle if part is not None]


class ClipData(L.LightningDataModule):
    """Loaders of the training and the validation split; each rank has its own rows.

    Args:
        datasets: `train` and `val`.
        config: The run's configuration.
    """

    def __init__(self, datasets: Mapping[str, VideoMapDataset], config: Config) -> None:
        super().__init__()
        self.datasets = datasets
        self.config = config

    def train_dataloader(self) -> ResumableLoader:
        assert self.trainer is not None
        data, world, dataset = self.config.data, self.trainer.world_size, self.datasets["train"]
        place: dict[str, Any] = {
            "batch_size": divide_batch(data.batch_size, world=world),
            "seed": self.config.trainer.seed,
            "rank": self.trainer.global_rank,
            "world": world,
        }
        sampler: SubjectUniqueBatchSampler | ShuffledBatchSampler
        if data.batches == "subject_unique":
            sampler = SubjectUniqueBatchSampler(number_subjects(dataset.records), **place)
        else:
            sampler = ShuffledBatchSampler(len(dataset), **place)
        return ResumableLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=data.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        dataset = self.datasets["val"]
        mine = range(self.trainer.global_rank, len(dataset), self.trainer.world_size)
        return DataLoader(
            Subset(dataset, mine),
            batch_size=self.config.data.batch_size,
            num_workers=self.config.data.workers,
            collate_fn=collate,
        )
