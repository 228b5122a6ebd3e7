"""The LightningModules of the two stages, and their data.

B images of a batch, C classes of it, P prompts of a side, D shared width, H and W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR

from aaclip.config import ImageStageConfig, LossConfig, TextStageConfig
from aaclip.data import AnomalyDataset, Batch, collate
from aaclip.models import AnomalyModel
from aaclip.models.contexts import RunningContexts, TextContexts
from aaclip.models.maps import differences, probability_map
from aaclip.models.prompts import PromptSet, average_prompts, embed_prompts
from aaclip.training.features import FrozenViews
from aaclip.training.losses import infonce_loss, orthogonal_loss, segmentation_loss
from clip_common.training import ResumableLoader, ShuffledBatchSampler

BETAS = (0.5, 0.999)
TRAINED = ("text_adapter", "text_cross_attn", "image_adapter", "image_cross_attn")
"""Parts of the model that a stage trains: stage 1 the first two, stage 2 the others."""


class BatchTexts(NamedTuple):
    """Embeddings of the classes of a batch, with gradients.

    Attributes:
        sides: Unit embeddings (P, D) of the normal, then of the abnormal prompts of each class: 2 C tensors.
        text_CD2: Normal and abnormal embedding of each class, in the order of their names.
        text_BD2: The same for each image.
    """

    sides: list[Tensor]
    text_CD2: Tensor
    text_BD2: Tensor


class Stage(L.LightningModule):
    """What all stages share: one model, one batch format, the losses, Adam(0.5, 0.999) over what the stage trains."""

    def __init__(self, model: AnomalyModel, losses: LossConfig, *, trained: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.losses = losses
        for name in TRAINED:
            if (part := getattr(model, name)) is not None:
                part.requires_grad_(name in trained)

    def segmentation(self, differences_B: Sequence[Tensor], masks_BHW: Tensor) -> Tensor:
        """Return the segmentation loss of the levels' maps, summed."""
        size, alpha = masks_BHW.shape[-1], self.losses.focal_alpha
        maps = [probability_map(level.float(), size=size) for level in differences_B]
        return torch.stack([segmentation_loss(p_BHW, masks_BHW, focal_alpha=alpha) for p_BHW in maps]).sum()

    def embed_texts(self, names: Sequence[str], prompts: PromptSet, contexts_CLD: Tensor | None = None) -> BatchTexts:
        """Embed the prompts of the classes of a batch.

        Args:
            names: Class of each image.
            prompts: States and templates.
            contexts_CLD: What the prompts of each class attend to, in the order of their names; None: nothing.
        """
        classes = sorted(set(names))
        encode = partial(self.model.encode_text, contexts_GLD=contexts_CLD)
        sides = embed_prompts(encode, [prompts.name_of(name) for name in classes], prompts)
        text_CD2 = average_prompts(sides, prompts)
        rows_B = torch.tensor([classes.index(name) for name in names], device=self.device)
        return BatchTexts(sides, text_CD2, text_CD2[rows_B])

    def text_losses(
        self, batch: Batch, patches: list[Tensor], texts: BatchTexts, stage: TextStageConfig
    ) -> dict[str, Tensor]:
        """Return the `loss` of texts against patches (B, L, D) of the levels that are not trained, and its parts."""
        text_BD2 = texts.text_BD2
        if stage.levels_in_loss == "last":
            patches = patches[-1:]
        levels = [differences(patches_BLD.to(text_BD2), text_BD2) for patches_BLD in patches]
        segmentation = self.segmentation(levels, batch.masks_BHW)
        orthogonal = orthogonal_loss(text_BD2)
        losses = {"segmentation": segmentation, "orthogonal": orthogonal}
        loss = segmentation + self.losses.orthogonal * orthogonal
        if self.losses.infonce:
            temperature = self.losses.infonce_temperature
            losses["infonce"] = infonce_loss(texts.sides, texts.text_CD2, temperature=temperature)
            loss = loss + self.losses.infonce * losses["infonce"]
        if stage.classification:
            image_BD = normalize(patches[-1].float().mean(dim=1), dim=-1)
            logits_B2 = self.losses.classification_scale * torch.einsum("bd,bdc->bc", image_BD, text_BD2)
            loss = loss + cross_entropy(logits_B2, batch.anomalous_B)
        return {"loss": loss, **losses}

    def image_losses(self, batch: Batch, text_BD2: Tensor, context: TextContexts | None = None) -> dict[str, Tensor]:
        """Return the `loss` of trained images against the embedding of the class of each, and its parts."""
        if self.model.image_adapter.detection is None:  # nothing is trained for the image as a whole
            levels, classification = self.model.patch_evidence(batch.images_B3HW, text_BD2, context), None
        else:
            evidence = self.model(batch.images_B3HW, text_BD2, context)
            levels, classification = evidence.levels, self.classification(evidence.classification, batch.anomalous_B)
        # times the number of levels, so that equal weights leave each level unscaled
        weights = self.model.level_weights * len(self.model.levels)
        segmentation = self.segmentation(
            [weight * level for weight, level in zip(weights, levels, strict=True)], batch.masks_BHW
        )
        if classification is None:
            return {"loss": segmentation, "segmentation": segmentation}
        return {
            "loss": segmentation + classification,
            "segmentation": segmentation,
            "classification": classification,
        }

    def classification(self, difference_B: Tensor, anomalous_B: Tensor) -> Tensor:
        """Return the cross-entropy of images as a whole: for two logits, the logistic loss of their difference."""
        logit_B = self.losses.classification_scale * difference_B
        return cross_entropy(torch.stack([torch.zeros_like(logit_B), logit_B], dim=1), anomalous_B)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the tensors of a batch; its lists of names are left alone."""
        moved = {field.name: getattr(batch, field.name) for field in fields(batch)}
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
        return Batch(**moved)

    def log_losses(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Log the `loss` of a batch and its parts; return it."""
        self.log("train/loss", losses["loss"], prog_bar=True)
        self.log_dict({f"train/{name}": part.detach() for name, part in losses.items() if name != "loss"})
        return losses["loss"]

    def describe_batch(self, batch: Batch) -> str:
        """Return the file names of a batch, for the message of a loss that is not finite."""
        return ", ".join(batch.names)

    def _adam(self, lr: float) -> Adam:
        return Adam([parameter for parameter in self.parameters() if parameter.requires_grad], lr=lr, betas=BETAS)


class TextStage(Stage):
    """Stage 1: adapters of the text tower, against frozen patches.

    Args:
        model: Its text adapters are trained, and its cross-attention of texts.
        stage: Of this stage.
        losses: Of the maps, and the weight of the orthogonal term.
        prompts: States and templates.
        views: Cached frozen patches; None computes them.
        contexts: Collects what the prompts of each class attend to; None without cross-attention.
    """

    def __init__(
        self,
        model: AnomalyModel,
        stage: TextStageConfig,
        losses: LossConfig,
        *,
        prompts: PromptSet,
        views: FrozenViews | None = None,
        contexts: RunningContexts | None = None,
    ) -> None:
        super().__init__(model, losses, trained=TRAINED[:2])
        model.log_temperature.requires_grad_(False)
        model.level_logits.requires_grad_(False)
        self.stage = stage
        self.prompts = prompts
        self.views = views
        self.contexts = contexts

    def configure_optimizers(self) -> Adam:
        return self._adam(self.stage.lr)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.log_losses(self.compute_losses(batch))

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the `loss` of a batch, and its parts."""
        patches, seen_BLD = self.read_patches(batch)
        contexts_CLD = None if self.contexts is None else self.contexts.take(seen_BLD, batch.class_names)
        texts = self.embed_texts(batch.class_names, self.prompts, contexts_CLD)
        return self.text_losses(batch, patches, texts, self.stage)

    def read_patches(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return the patches (B, L, D) of each level that the loss compares texts with, and those that texts attend to.

        None of them has gradients.
        """
        if self.views is None:
            patches = self.model.frozen_patches(batch.images_B3HW)
        else:
            patches = self.views.patches(batch.indices_B, epoch=self.current_epoch)
        return patches, patches[0]


class ImageStage(Stage):
    """Stage 2: adapters and heads of the image tower, against fixed class embeddings.

    Args:
        model: Its image adapters are trained, its cross-attention of images, and temperature and level weights if
            configured.
        stage: Of this stage.
        losses: Of the maps, and the scale of the classification.
        classes: (D, 2) embedding of each class by name.
        contexts: Text context (N, F) of each class by name; empty without cross-attention.
    """

    def __init__(
        self,
        model: AnomalyModel,
        stage: ImageStageConfig,
        losses: LossConfig,
        *,
        classes: Mapping[str, Tensor],
        contexts: Mapping[str, Tensor],
    ) -> None:
        super().__init__(model, losses, trained=TRAINED[2:])
        model.log_temperature.requires_grad_(stage.learned_temperature)
        model.level_logits.requires_grad_(stage.learned_levels)
        self.stage = stage
        self.classes = dict(classes)
        self.contexts = dict(contexts)

    def on_fit_start(self) -> None:
        """Move the text contexts to where the model is."""
        self.contexts = {name: context_NF.to(self.device) for name, context_NF in self.contexts.items()}

    def configure_optimizers(self) -> dict[str, Any]:
        return halve_rates(self._adam(self.stage.lr), milestones=self.list_milestones())

    def list_milestones(self) -> list[int]:
        """Return the steps at which the learning rate is halved."""
        return self.stage.milestones

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.log_losses(self.compute_losses(batch))

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the `loss` of a batch, and its parts."""
        text_BD2 = torch.stack([self.classes[name] for name in batch.class_names]).to(self.device)
        context = TextContexts.of(self.contexts, batch.class_names) if self.contexts else None
        return self.image_losses(batch, text_BD2, context)


def halve_rates(optimizer: Adam, *, milestones: list[int]) -> dict[str, Any]:
    """Return the optimizer with its learning rates halved at each of these steps, as Lightning takes it."""
    scheduler = MultiStepLR(optimizer, milestones=milestones, gamma=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StageData(L.LightningDataModule):
    """A loader over the training samples.

    Args:
        dataset: Samples by (seed, epoch, index).
        batch_size: Images per step; all of them if there are fewer.
        seed: Of the order.
        workers: Loader processes; 0 decodes in the training process.
        drop_last: Leave out an epoch's last batch if it is not full.
    """

    def __init__(
        self, dataset: AnomalyDataset | FrozenViews, *, batch_size: int, seed: int, workers: int, drop_last: bool = True
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = min(batch_size, len(dataset))
        self.seed = seed
        self.workers = workers
        self.drop_last = drop_last

    def train_dataloader(self) -> ResumableLoader:
        assert self.trainer is not None
        sampler = ShuffledBatchSampler(
            len(self.dataset),
            batch_size=self.batch_size,
            seed=self.seed,
            drop_last=self.drop_last,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        return ResumableLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
        )
