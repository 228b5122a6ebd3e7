"""The LightningModule and the DataModule of videoclip; `experiment.fit_split` uses them.

B clips of a batch, K classes, D the width of the shared space.
"""

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
from videoclip.models.pooling import MapGuidedVideoEncoder
from videoclip.scoring.metrics import KS, score_classification, score_retrieval
from videoclip.training.losses import VideoClipLoss


class AlignmentModule(L.LightningModule):
    """The training step, and classification metrics over the whole validation split after each epoch.

    Args:
        model: Encoders, heads and classifier.
        config: The run's configuration.
        teacher: A trained model whose answers are taught, guided by the maps; it is neither trained nor saved.
    """

    def __init__(self, model: VideoAttentionCLIP, config: Config, *, teacher: VideoAttentionCLIP | None = None) -> None:
        super().__init__()
        self.model = model
        self.teachers = () if teacher is None else (teacher,)  # no submodule, which a checkpoint would hold
        self.config = config
        self.loss = VideoClipLoss(config.loss, token_config=config.model)
        for part in find_idle_parts(model, config):
            part.requires_grad_(False)
        self.aligns = config.loss.clip_weight > 0
        self.validated: list[tuple[Tensor, ...]] = []

    def configure_optimizers(self) -> dict[str, Any]:
        return optimizer_and_schedule(self, self.config.optim)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the tensors of a batch to a device."""
        return batch.to(device)

    def forward_batch(self, batch: Batch, *, align: bool) -> Output:
        """Run the model on a batch; compute embeddings only if `align`."""
        output: Output = self.model(
            normalise(batch.video_B3THW), batch.map_BCTHW, valid_B=batch.valid_B, guides_B=batch.guides_B, align=align
        )
        return output

    def on_fit_start(self) -> None:
        for teacher in self.teachers:
            teacher.eval().to(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.model.map_dropout = self.map_dropout
        output = self.forward_batch(batch, align=self.aligns)
        taught_BK = None
        for teacher in self.teachers:
            with torch.no_grad():
                shown = normalise(batch.video_B3THW), batch.map_BCTHW
                taught_BK = teacher(*shown, valid_B=batch.valid_B, align=False).logits
        losses = self.loss(
            output,
            map_BCTHW=batch.map_BCTHW,
            label_B=batch.label_B,
            subject_B=batch.subject_B,
            regions_B=batch.regions_B,
            scale=self.model.logit_scale(),
            taught_BK=taught_BK,
        )
        if self.aligns:  # the mean ln of the number of candidates: some clips of a batch may be no negatives
            self.contrastive_chance = float(losses.contrastive_chance)
            self.log("train/loss_contrastive_chance", losses.contrastive_chance)
        self.log("train/loss", losses.total, prog_bar=True)
        self.log_dict({f"train/loss_{name}": value for name, value in losses.parts.items()})
        return losses.total

    @property
    def map_dropout(self) -> float:
        """Share of the clips whose map is hidden in this step: a function of the step alone."""
        whole, warmup = self.config.model.map_dropout, self.config.model.map_dropout_warmup
        if not warmup:
            return whole
        return whole * min(1.0, self.global_step / (warmup * float(self.trainer.estimated_stepping_batches)))

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """Step, then clamp the scale; within the step, so that a checkpoint after it holds the clamped scale."""
        super().optimizer_step(*arguments, **keywords)
        self.model.logit_scale.clamp_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        output = self.forward_batch(batch, align=self.aligns)
        kept = [output.logits.float(), batch.label_B]
        if self.aligns:
            assert output.video_embed is not None
            assert output.attn_embed is not None
            kept += [output.video_embed, output.attn_embed, output.map_valid, batch.map_B, batch.regions_B]
        self.validated.append(tuple(tensor.cpu() for tensor in kept))

    def on_validation_epoch_end(self) -> None:
        columns = [torch.cat(parts) for parts in zip(*gather_from_ranks(self.validated), strict=True)]
        self.validated = []
        logits_NK, label_N = columns[:2]
        metrics = score_classification(logits_NK.argmax(dim=1), label_N, classes=self.config.model.model_class_num)
        self.log_dict({f"val/{name}": metrics[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")})
        self.log("val/loss", torch.nn.functional.cross_entropy(logits_NK, label_N))
        if self.aligns:
            self.log_dict({f"val/{name}": value for name, value in average_retrieval(*columns[2:]).items()})

    def describe_batch(self, batch: Batch) -> str:
        """Return the names of a batch's clips, for the message about a loss that is not finite."""
        return ", ".join(batch.clip_ids)


def average_retrieval(
    video_ND: Tensor, attn_ND: Tensor, valid_N: Tensor, map_N: Tensor, regions_N: Tensor
) -> dict[str, float]:
    """Return the retrieval metrics of the clips with maps, and `retrieval_r1` and `…_r5`, the means of both ways."""
    if int(valid_N.sum()) < 2:
        return {}
    video, attn, maps, regions = (column[valid_N].numpy() for column in (video_ND, attn_ND, map_N, regions_N))
    found = {name: float(hits_N.mean()) for name, hits_N in score_retrieval(
        video, attn, map_N=maps, regions_N=regions
    ).items()}  # fmt: skip
    both = {f"retrieval_r{k}": (found[f"retrieval_r{k}_v2a"] + found[f"retrieval_r{k}_a2v"]) / 2 for k in KS}
    return found | both


def find_idle_parts(model: VideoAttentionCLIP, config: Config) -> list[nn.Module | nn.Parameter]:
    """Return the parts of the model that the loss does not reach, to be frozen: DDP would wait for their gradients."""
    source, aligns, settings = config.model.clip_classifier_source, config.loss.clip_weight > 0, config.model
    means_align = aligns and settings.align_pool == "mean"
    idle: list[nn.Module | nn.Parameter | None] = []
    if not aligns:
        idle += [model.video_projection, model.attn_projection, model.logit_scale]
    if source == "video":
        if not aligns:
            idle.append(model.attn_encoder)
        elif not means_align:
            idle.append(model.attn_encoder.head)
    if source == "attn" and not (means_align and settings.align_tokens == "gated"):  # nothing reads the guided feature
        encoder = model.video_encoder
        idle.append(model.map_gate)
        if isinstance(encoder, MapGuidedVideoEncoder):
            idle += [encoder.alpha, encoder.sigmoid_gate, encoder.channel_gate]
        if not aligns:
            idle.append(encoder)
        elif not means_align:
            idle += encoder.readout
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
