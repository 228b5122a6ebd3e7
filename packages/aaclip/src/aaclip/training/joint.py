"""Both stages at once, end to end (`stages.order=joint`)."""

from typing import Any

from torch import Tensor
from torch.optim import Adam

from aaclip.config import LossConfig, StagesConfig
from aaclip.data import Batch
from aaclip.models import AnomalyModel
from aaclip.models.prompts import PromptSet
from aaclip.training.modules import BETAS, Stage, halve_rates


class JointStage(Stage):
    """Adapters of both towers: stage 1's loss plus stage 2's, with the class embeddings of the moment in both.

    Both losses train the text adapters.

    Args:
        model: Without cross-attention; its adapters and heads are trained, and temperature and level weights if
            configured.
        stages: Of both.
        losses: Of both.
        prompts: States and templates.
    """

    def __init__(self, model: AnomalyModel, stages: StagesConfig, losses: LossConfig, *, prompts: PromptSet) -> None:
        super().__init__(model, losses, trained=("text_adapter", "image_adapter"))
        model.log_temperature.requires_grad_(stages.image.learned_temperature)
        model.level_logits.requires_grad_(stages.image.learned_levels)
        self.stages = stages
        self.prompts = prompts

    def configure_optimizers(self) -> dict[str, Any]:
        text = list(self.model.text_adapter.parameters())
        known = {id(parameter) for parameter in text}
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        groups = [
            {"params": text, "lr": self.stages.text.lr},
            {"params": [one for one in trained if id(one) not in known], "lr": self.stages.image.lr},
        ]
        return halve_rates(Adam(groups, betas=BETAS), milestones=self.stages.image.milestones)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.log_losses(self.compute_losses(batch))

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the `loss` of a batch, that of each stage as `text` and `image`, and the parts that they differ in."""
        texts = self.embed_texts(batch.class_names, self.prompts)
        patches = self.model.frozen_patches(batch.images_B3HW)
        text = self.text_losses(batch, patches, texts, self.stages.text)
        image = self.image_losses(batch, texts.text_BD2.float())
        parts = {name: part for name, part in (text | image).items() if name not in ("loss", "segmentation")}
        return {"loss": text["loss"] + image["loss"], "text": text["loss"], "image": image["loss"], **parts}
