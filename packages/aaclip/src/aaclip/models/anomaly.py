"""The whole model, and plain CLIP to compare it with: from images and class embeddings to evidence of a defect.

Shapes: B images, g patches a side, K levels, D shared width, P prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from aaclip.config import AdapterConfig, CrossAttentionConfig, HeadConfig, SurgeryConfig
from aaclip.models.contexts import Contexts, TextContexts, round_half
from aaclip.models.cross_attention import CrossAttentionModule, ImageCrossAttentionModule
from aaclip.models.maps import TEMPERATURE, differences
from aaclip.models.text import TextAdapter, get_text_trunk
from aaclip.models.vision import (
    ImageAdapter,
    ImageFeatures,
    check_levels,
    choose_levels,
    embed_class_token,
    get_image_trunk,
)
from aaclip.models.vv_attention import choose_vv_blocks, read_vv_patches
from clip_common.backbones import Bundle, TextTower, freeze, move


class Evidence(NamedTuple):
    """Evidence of a defect in each image of a batch, before maps and scores.

    Attributes:
        levels: (B, g, g) logit of abnormal minus logit of normal, one tensor for each level.
        classification: (B,) cosine to abnormal minus cosine to normal, of the image as a whole.
        abnormal: (B,) cosine to abnormal alone, which the released code ranks by.
    """

    levels: list[Tensor]
    classification: Tensor
    abnormal: Tensor

    @classmethod
    def of(cls, features: ImageFeatures, text_BD2: Tensor, *, temperature: Tensor | float = TEMPERATURE) -> "Evidence":
        """Compare features of images with the embedding (D, 2) of each image's class."""
        levels = [differences(patches_BLD, text_BD2, temperature=temperature) for patches_BLD in features.levels]
        cosines_B2 = torch.einsum("bd,bdc->bc", features.detection, text_BD2)
        return cls(levels, cosines_B2[:, 1] - cosines_B2[:, 0], cosines_B2[:, 1])


class FrozenCLIP(nn.Module):
    """The frozen towers that both models share."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.bundle = bundle
        self.image_tower = freeze(bundle.image_tower)
        self.text_tower = freeze(bundle.text_tower)
        self.text_cross_attn: CrossAttentionModule | None = None
        self.image_cross_attn: ImageCrossAttentionModule | None = None

    def check_contexts(self, contexts: Contexts | None, *, at_test: bool) -> None:
        """Raise ValueError if tests use cross-attention and there is no image context for their prompts."""
        if self.text_cross_attn is not None and at_test and not (contexts and contexts.image):
            raise ValueError(
                "a detector with cross-attention needs the image context of a class or more, got none: train it with "
                "`aaclip train start=RUN cross_attention.enabled=true`, or set cross_attention.at_test=false"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert every weight (`to`, `cuda`, `half`), except those of a text tower that was left out."""
        return super()._apply(lambda weight: weight if weight.is_meta else fn(weight), recurse)

    def take_text(self, tower: TextTower) -> None:
        """Put a text tower in the place of the one that was left out."""
        self.text_tower = freeze(tower).to(next(self.image_tower.parameters()).device)
        self.bundle = replace(self.bundle, text=replace(self.bundle.text, tower=self.text_tower))


class AnomalyModel(FrozenCLIP):
    """A frozen CLIP with the adapters of both stages.

    Args:
        bundle: The CLIP; it is frozen here.
        levels: Image blocks, from 1, whose patches are read; None: quarters of the depth.
        surgery: Of the view that stage 1 reads.
        adapters, heads: The trained modules.
        cross_attention: Between the towers; None, or not enabled: none.
        learned_tokens: Number of learned token embeddings in every prompt.

    Raises:
        ValueError: Levels or blocks that the towers do not have.
        BackboneError: Towers of another kind than CLIP's.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        levels: Sequence[int] | None,
        surgery: SurgeryConfig,
        adapters: AdapterConfig,
        heads: HeadConfig,
        cross_attention: CrossAttentionConfig | None = None,
        learned_tokens: int = 0,
    ) -> None:
        super().__init__(bundle)
        self.levels = list(levels or choose_levels(self.image_tower))
        self.axis = surgery.axis
        depth = len(get_image_trunk(self.image_tower).blocks)
        self.vv_blocks = choose_vv_blocks(self.image_tower) if surgery.blocks is None else surgery.blocks
        if not 0 <= self.vv_blocks <= depth:
            raise ValueError(f"surgery.blocks={surgery.blocks}: the image tower has {depth} blocks")
        self.text_adapter = TextAdapter(self.text_tower, adapters, learned_tokens=learned_tokens)
        self.image_adapter = ImageAdapter(self.image_tower, levels=self.levels, adapters=adapters, heads=heads)
        if cross_attention is not None and cross_attention.enabled:
            text, image = get_text_trunk(self.text_tower), get_image_trunk(self.image_tower)
            self.keep_padding = cross_attention.padding == "kept"
            # after the adapters, which then start from the same random numbers with and without
            self.text_cross_attn = CrossAttentionModule(
                cross_attention, width=text.width, context_width=image.embed_dim
            )
            self.image_cross_attn = ImageCrossAttentionModule(
                cross_attention, width=image.width, context_width=text.width
            )
        # trained by stage 2 if configured
        self.log_temperature = nn.Parameter(torch.tensor(TEMPERATURE).log(), requires_grad=False)
        self.level_logits = nn.Parameter(torch.zeros(len(self.levels)), requires_grad=False)

    @property
    def device(self) -> torch.device:
        return self.level_logits.device

    @property
    def level_weights(self) -> Tensor:
        """(K,) weights of the levels in the map; they sum to one."""
        return self.level_logits.softmax(dim=0)

    def inventory(self) -> list[tuple[str, int, str]]:
        """Return each part's name, its number of parameters, and `frozen` or the stage that trains it."""
        parts = {
            "image tower": (self.image_tower, "frozen"),
            "text tower": (self.text_tower, "frozen"),
            "text adapters": (self.text_adapter.layers, "stage 1"),
            "final text projection": (self.text_adapter.final, "stage 1"),
            "image adapters": (self.image_adapter.layers, "stage 2"),
            "segmentation heads": (self.image_adapter.segmentation, "stage 2"),
        }
        if self.text_adapter.tokens is not None:
            parts["learned tokens"] = (self.text_adapter.tokens, "stage 1")
        if self.image_adapter.detection is not None:
            parts["detection head"] = (self.image_adapter.detection, "stage 2")
        if self.image_adapter.query is not None:
            parts["detection query"] = (self.image_adapter.query, "stage 2")
        if self.text_cross_attn is not None and self.image_cross_attn is not None:
            parts["text cross-attention"] = (self.text_cross_attn, "stage 1")
            parts["image cross-attention"] = (self.image_cross_attn, "stage 2")
        return [
            (name, sum(parameter.numel() for parameter in module.parameters()), state)
            for name, (module, state) in parts.items()
        ]

    def check_texts(self, texts: list[str]) -> None:
        """Raise ValueError if a text does not fit the text tower's context beside the learned tokens."""
        tokens_PT = self.bundle.tokenizer(texts)
        assert isinstance(tokens_PT, Tensor)
        self.text_adapter.make_room(self.text_tower, tokens_PT)

    def encode_text(self, texts: list[str], contexts_GLD: Tensor | None = None) -> Tensor:
        """Return (P, D) embeddings from the adapted text tower, not normalised.

        Args:
            texts: P of them.
            contexts_GLD: Image context of each class that the texts are about: the first P/G are about the first class.
                None: without cross-attention.
        """
        tokens_PT = self.bundle.tokenizer(texts)
        attend = None
        if contexts_GLD is not None:
            assert self.text_cross_attn is not None
            attend = partial(self.text_cross_attn, context_GNC=contexts_GLD.to(self.device))
        embedded_PD: Tensor = self.text_adapter(self.text_tower, move(tokens_PT, self.device), attend=attend)
        return embedded_PD

    @torch.no_grad()
    def read_text_context(self, texts: list[str]) -> Tensor:
        """Return the (N, F) tokens that images of a class attend to, of all its prompts, as they are stored."""
        tokens_PT = move(self.bundle.tokenizer(texts), self.device)
        assert isinstance(tokens_PT, Tensor)
        return round_half(self.text_adapter.first_tokens(self.text_tower, tokens_PT, padding=self.keep_padding))

    def frozen_patches(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return the patches (B, L, D) of the V-V view, which stage 1 compares texts with, for each level."""
        return read_vv_patches(self.image_tower, images_B3HW, levels=self.levels, blocks=self.vv_blocks, axis=self.axis)

    def trained_patches(self, images_B3HW: Tensor, context: TextContexts | None = None) -> list[Tensor]:
        """Return the patches (B, L, D) of the trained tower in the form of `frozen_patches`, for each level.

        These are unit patches, plus the unit class embedding of the frozen tower. See `features` for the arguments.
        """
        patches = self.image_adapter.patches(self.image_tower, images_B3HW, attend=self._attend(context))
        class_B1D = embed_class_token(self.image_tower, images_B3HW)[:, None]
        return [patches_BLD + class_B1D for patches_BLD in self.image_adapter.embed_patches(patches)]

    def features(self, images_B3HW: Tensor, context: TextContexts | None = None) -> ImageFeatures:
        """Return the features of images, before they are compared with any class.

        Args:
            images_B3HW: Preprocessed pixels.
            context: What each image attends to; None: without cross-attention.
        """
        features: ImageFeatures = self.image_adapter(self.image_tower, images_B3HW, attend=self._attend(context))
        return features

    def _attend(self, context: TextContexts | None) -> Callable[[Tensor], Tensor] | None:
        if context is None:
            return None
        assert self.image_cross_attn is not None
        tokens_GNF, mask_GN, rows_B = context
        return partial(self.image_cross_attn, context_GNC=tokens_GNF, mask_GN=mask_GN, rows_B=rows_B)

    @property
    def temperature(self) -> Tensor:
        """Factor of the cosines of patches."""
        return self.log_temperature.exp()

    def forward(self, images_B3HW: Tensor, text_BD2: Tensor, context: TextContexts | None = None) -> Evidence:
        """Return the evidence for each image, given the embedding (D, 2) of its class."""
        return Evidence.of(self.features(images_B3HW, context), text_BD2, temperature=self.temperature)

    def patch_evidence(
        self, images_B3HW: Tensor, text_BD2: Tensor, context: TextContexts | None = None
    ) -> list[Tensor]:
        """Return the levels of the evidence alone: all that is trained if the class token is frozen."""
        patches = self.image_adapter.patches(self.image_tower, images_B3HW, attend=self._attend(context))
        embedded = self.image_adapter.embed_patches(patches)
        return [differences(patches_BLD, text_BD2, temperature=self.temperature) for patches_BLD in embedded]


class PlainCLIP(FrozenCLIP):
    """CLIP without adapters, with the same prompts: the figure that training must beat.

    Patches of each level go through CLIP's own last norm and projection; the class embedding classifies.
    """

    def __init__(self, bundle: Bundle, *, levels: Sequence[int] | None = None) -> None:
        super().__init__(bundle)
        depth = len(get_image_trunk(self.image_tower).blocks)
        self.levels = check_levels(levels or choose_levels(self.image_tower), depth=depth)

    @property
    def device(self) -> torch.device:
        return next(self.image_tower.parameters()).device

    @property
    def level_weights(self) -> Tensor:
        """(K,) equal shares."""
        return torch.full((len(self.levels),), 1 / len(self.levels), device=self.device)

    def encode_text(self, texts: list[str]) -> Tensor:
        """Return (P, D) embeddings, not normalised."""
        embedded_PD: Tensor = self.text_tower(move(self.bundle.tokenizer(texts), self.device))
        return embedded_PD

    def features(self, images_B3HW: Tensor, context: TextContexts | None = None) -> ImageFeatures:
        """Return the features of images, before any class is named; plain CLIP attends to no context."""
        assert context is None
        trunk = get_image_trunk(self.image_tower)
        output = self.image_tower(images_B3HW, layers=self.levels)
        patches = [normalize(trunk.project(output.layers[level][:, 1:]), dim=-1) for level in self.levels]
        return ImageFeatures(patches, normalize(output.pooled, dim=-1))

    @property
    def temperature(self) -> float:
        """Factor of the cosines of patches."""
        return TEMPERATURE

    def forward(self, images_B3HW: Tensor, text_BD2: Tensor) -> Evidence:
        """Return the evidence for each image, given the embedding (D, 2) of its class."""
        return Evidence.of(self.features(images_B3HW), text_BD2)
