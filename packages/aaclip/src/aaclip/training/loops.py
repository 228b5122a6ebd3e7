"""The LightningModules of feedback loops: what they read, which parts they train, and their optimizers.

Shapes: B images, T tokens (class token first), L patches, F width of the image tower, D shared width.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aaclip.config import FeedbackConfig
from aaclip.data import Batch
from aaclip.models import AnomalyModel
from aaclip.models.contexts import TextContexts
from aaclip.training.modules import TRAINED, ImageStage, TextStage
from clip_common.config import OptimConfig
from clip_common.training import optimizer_and_schedule


class LoopTextStage(TextStage):
    """Stage 1 of a loop: from the second loop on, against the patches that the loop before trained.

    Args:
        arguments, options: Of `TextStage`.
        feedback: Of the loops.
        first: It is the first loop, against the frozen tower.
        seen: Text context (N, F) of each class that images attended to in the loop before; empty: none.
    """

    def __init__(
        self, *arguments: Any, feedback: FeedbackConfig, first: bool, seen: Mapping[str, Tensor], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.feedback, self.first, self.seen = feedback, first, dict(seen)
        choose_trained(self.model, TRAINED[:2], feedback, attends=self.contexts is not None)

    def on_train_start(self) -> None:
        """Read the image tower without dropout: it is frozen in this stage."""
        self.seen = {name: context_NF.to(self.device) for name, context_NF in self.seen.items()}
        if self.model.image_cross_attn is not None:
            self.model.image_cross_attn.eval()

    def configure_optimizers(self) -> Any:
        if self.feedback.optimizer == "adamw":
            return optimizer_and_schedule(self, make_optim(self.feedback, lr=self.stage.lr))
        return super().configure_optimizers()

    @torch.no_grad()
    def read_patches(self, batch: Batch) -> tuple[list[Tensor], Tensor]:
        """Return the patches (B, L, D) of each level, and those that texts attend to; see `TextStage`."""
        if self.first:
            return super().read_patches(batch)
        context = TextContexts.of(self.seen, batch.class_names) if self.seen else None
        patches = self.model.trained_patches(batch.images_B3HW, context)
        if self.contexts is not None and self.contexts.over == "batch":
            return patches, read_fork_context(self.model, batch.images_B3HW)
        return patches, patches[0]


class LoopImageStage(ImageStage):
    """Stage 2 of a loop.

    Args:
        arguments, options: Of `ImageStage`.
        feedback: Of the loops.
    """

    def __init__(self, *arguments: Any, feedback: FeedbackConfig, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.feedback = feedback
        choose_trained(self.model, TRAINED[2:], feedback, attends=bool(self.contexts))

    def configure_optimizers(self) -> dict[str, Any]:
        if self.feedback.optimizer == "adamw":
            return optimizer_and_schedule(self, make_optim(self.feedback, lr=self.stage.lr))
        return super().configure_optimizers()

    def list_milestones(self) -> list[int]:
        """Return shares of the loop's steps, as steps."""
        assert self.trainer is not None
        steps = int(self.trainer.estimated_stepping_batches)
        return [round(share * steps) for share in self.feedback.milestones]


def make_optim(feedback: FeedbackConfig, *, lr: float) -> OptimConfig:
    """Return the settings of AdamW(0.9, 0.999) with warmup, then cosine."""
    return OptimConfig(lr=lr, weight_decay=feedback.weight_decay, warmup_epochs=feedback.warmup_epochs)


def choose_trained(model: AnomalyModel, parts: tuple[str, ...], feedback: FeedbackConfig, *, attends: bool) -> None:
    """Freeze the parts of a stage that `feedback.freeze` leaves alone, and cross-attention where a loop has none.

    Args:
        model: Its parts that the stage trains have gradients.
        parts: Adapters and cross-attention of the stage (`TRAINED`).
        feedback: Of the loops.
        attends: The loop has cross-attention.
    """
    adapter, attention = (getattr(model, part) for part in parts)
    if attention is not None:
        attention.requires_grad_(attends)
    if feedback.freeze == "none":
        return
    adapter.requires_grad_(False)
    model.log_temperature.requires_grad_(False)
    model.level_logits.requires_grad_(False)
    if feedback.freeze == "variant_b":
        first = [*list(adapter.layers)[:1], *(adapter.segmentation[:1] if parts[0] == "image_adapter" else ())]
        for module in first:
            module.requires_grad_(True)


@torch.no_grad()
def read_fork_context(model: AnomalyModel, images_B3HW: Tensor) -> Tensor:
    """Return the patches (B, L, D) that texts attend to in the fork's later loops: those of the block after the last
    adapter, through the first head, neither normed nor of unit length.

    Args:
        model: Read without cross-attention.
        images_B3HW: Preprocessed pixels.
    """
    adapter = model.image_adapter
    walk = adapter.walk(model.image_tower, images_B3HW, depth=max(adapter.layers.places, default=0) + 1)
    x_BTF = deque(walk, maxlen=1).pop()  # the last one, without keeping the others
    patches_BLD: Tensor = adapter.segmentation[0](x_BTF[:, 1:])
    return patches_BLD
