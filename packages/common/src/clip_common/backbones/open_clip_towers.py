"""The towers of open_clip behind the one idea of a tower; text at its real length where that is exact.

Shapes: B batch, F width, T tokens, L patch tokens or length of a text.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from clip_common.backbones.spec import BackboneError
from clip_common.backbones.towers import TextTower, TextTrunk, VisionOutput, VisionTower, VisionTrunk, recorded

LANES = 16
"""Lengths of text are multiples of this: CPU kernels then see numbers in the same vector lanes as at full length, and
the same bits come out; and shapes stay few for allocators and compilers."""


@contextmanager
def without_attention_maps() -> Iterator[None]:
    """Keep nn.MultiheadAttention from the path that torch takes without gradients: it writes the map (B, H, T, T) out.

    At 1,765 patches the other one, `scaled_dot_product_attention`, takes two fifths of the time.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class OpenClipVision(VisionTrunk):
    """A vision transformer of open_clip, projection included: F of the pooled features is the shared width."""

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        visual.output_tokens = True
        self.visual = visual
        self.width = visual.transformer.width
        self.patch_size = visual.patch_size[0]

    @property
    def blocks(self) -> nn.ModuleList:
        return self.visual.transformer.resblocks

    @without_attention_maps()
    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        # an attentional pooler (CoCa) hands on its queries, not patches: those are taken from the last block
        extra = () if self.visual.attn_pool is None else (len(self.blocks),)
        with recorded(self.blocks, sorted({*layers, *extra})) as outputs:
            pooled_BD, patches_BLF = self.visual(images_B3HW)
        if extra:
            patches_BLF = outputs[extra[0]][:, 1:]
        return VisionOutput(pooled_BD, patches_BLF, {number: outputs[number] for number in layers})

    @without_attention_maps()
    def features(self, images_B3HW: Tensor) -> Tensor:
        """(B, D). Only the class token of the last block is read, so only it goes through that block, as a query."""
        visual = self.visual
        last: Any = self.blocks[-1]
        by_class_token = visual.attn_pool is None and visual.pool_type == "tok"
        if not (by_class_token and type(last) is ResidualAttentionBlock) or visual.transformer.grad_checkpointing:
            return super().features(images_B3HW)
        x_BTF = visual._embeds(images_B3HW)
        for block in self.blocks[:-1]:
            x_BTF = block(x_BTF)
        normed_BTF = last.ln_1(x_BTF)
        class_B1F = x_BTF[:, :1] + last.ls_1(last.attention(normed_BTF[:, :1], normed_BTF, normed_BTF))
        class_B1F = class_B1F + last.ls_2(last.mlp(last.ln_2(class_B1F)))
        return visual.ln_post(class_B1F[:, 0]) @ visual.proj


class TimmVision(VisionTrunk):
    """A timm model under open_clip's head: SigLIP and EVA transformers, ConvNeXt and others without blocks."""

    def __init__(self, visual: TimmModel) -> None:
        super().__init__()
        self.visual = visual
        self.width = visual.trunk.num_features
        self.patch_size = visual.trunk.feature_info[-1]["reduction"]

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = getattr(self.visual.trunk, "blocks", None)
        return nn.ModuleList() if blocks is None else nn.ModuleList(blocks)

    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        trunk = self.visual.trunk
        with recorded(self.blocks, layers) as outputs:
            features = trunk.forward_features(images_B3HW)
        pooled_BD = self.visual.head(trunk.forward_head(features))
        return VisionOutput(pooled_BD, self._patches(features), outputs)

    def _patches(self, features: Tensor) -> Tensor:
        if features.ndim == 3:
            return features[:, self.visual.trunk.num_prefix_tokens :]
        if features.shape[1] == self.width:  # (B, F, h, w); a swin has its channels last
            features = features.permute(0, 2, 3, 1)
        return features.flatten(1, 2)


class ResNetVision(VisionTrunk):
    """OpenAI's modified ResNet: its last feature map stands for the patch tokens; it has no blocks to name."""

    patch_size = 32

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        self.visual = visual
        self.width = visual.attnpool.q_proj.in_features

    @property
    def blocks(self) -> nn.ModuleList:
        return nn.ModuleList()

    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        with recorded(self.blocks, layers), recorded(nn.ModuleList([self.visual.layer4]), (1,)) as maps:
            pooled_BD = self.visual(images_B3HW)
        return VisionOutput(pooled_BD, maps[1].flatten(2).transpose(1, 2), {})


class OpenClipText(TextTrunk):
    """A causal text transformer of open_clip, projection included, run only as far as the longest text of the batch.

    Exact, because no token sees a later one and the feature is read at the end-of-text token: what is cut away never
    reaches it. Cost: proportional to the longest text, rounded up to 16 tokens, instead of to the context length.
    """

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text
        self.width = text.width
        self.depth = len(text.transformer.resblocks)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        text = self.text
        ends_B = self.ends(tokens_BT)
        length = self.real_length(ends_B, tokens_BT.shape[1])
        x_BLF = text.token_embedding(tokens_BT[:, :length]).to(text.transformer.get_cast_dtype())
        x_BLF = x_BLF + text.positional_embedding[:length].to(x_BLF.dtype)
        x_BLF = text.transformer(x_BLF, attn_mask=text.attn_mask[:length, :length])
        pooled_BF = text.ln_final(x_BLF[torch.arange(len(x_BLF), device=x_BLF.device), ends_B])
        if text.text_projection is None:
            return pooled_BF
        if isinstance(text.text_projection, nn.Linear):
            return text.text_projection(pooled_BF)
        return pooled_BF @ text.text_projection

    def real_length(self, ends_B: Tensor, context: int) -> int:
        """Tokens that the longest text needs, rounded up to `LANES`; more than these change nothing."""
        return min(-(-(int(ends_B.max()) + 1) // LANES) * LANES, context)

    def ends(self, tokens_BT: Tensor) -> Tensor:
        """(B,) position of the end-of-text token: the largest id, or the tower's own `eos_id`."""
        if self.text.pool_type == "eos":
            tokens_BT = (tokens_BT == self.text.eos_id).int()
        return tokens_BT.argmax(dim=-1)


class WholeText(TextTrunk):
    """A text tower of open_clip that must see every position: bidirectional, CoCa's, or a transformers model."""

    def __init__(self, text: TextTransformer | HFTextEncoder) -> None:
        super().__init__()
        self.text = text
        if isinstance(text, TextTransformer):
            self.width, self.depth = text.width, len(text.transformer.resblocks)
        else:
            config = text.config
            self.width = config.d_model if hasattr(config, "d_model") else config.hidden_size
            self.depth = config.num_hidden_layers

    def forward(self, tokens_BT: Tensor) -> Tensor:
        output = self.text(tokens_BT)
        return output[0] if isinstance(output, tuple) else output


def towers_of(model: CustomTextCLIP) -> tuple[VisionTower, TextTower]:
    """The two towers of an open_clip model, sharing its weights."""
    visual, text = model.visual, model.text
    if isinstance(visual, VisionTransformer):
        image_trunk: VisionTrunk = OpenClipVision(visual)
    elif isinstance(visual, TimmModel):
        image_trunk = TimmVision(visual)
    elif isinstance(visual, ModifiedResNet):
        image_trunk = ResNetVision(visual)
    else:
        raise BackboneError(f"image towers of type {type(visual).__name__} are not supported")
    text_trunk: TextTrunk = OpenClipText(text) if ends_at_eot(text) else WholeText(text)
    return VisionTower(image_trunk), TextTower(text_trunk)


def ends_at_eot(text: nn.Module) -> bool:
    """Whether the real length is exact: causal attention, and the feature read at the end-of-text token."""
    return (
        isinstance(text, TextTransformer)
        and text.attn_mask is not None
        and text.cls_emb is None
        and text.pool_type in ("argmax", "eos")
    )
