"""Trunks of open_clip's image and text towers; text runs at its real length where that is exact.

Shapes: B batch, D shared width, F width, M width of an MLP, H heads, d width of a head, T tokens, L patch tokens or
length of a text.
"""

from collections.abc import Callable, Sequence

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from clip_common.backbones.open_clip_blocks import AttentionBlock, CausalBlock, MaskedBlock, without_attention_maps
from clip_common.backbones.spec import BackboneError
from clip_common.backbones.towers import TextTower, VisionTower
from clip_common.backbones.trunk import Block, TextTrunk, VisionOutput, VisionTrunk, record_outputs

LANES = 16
"""Lengths of text are multiples of this: CPU kernels then see numbers in the same vector lanes as at full length, and
the same bits come out; and shapes stay few for allocators and compilers."""


class OpenClipVision(VisionTrunk):
    """A vision transformer of open_clip, projection included: F of the pooled features is the shared width."""

    def __init__(self, visual: VisionTransformer) -> None:
        super().__init__()
        visual.output_tokens = True
        self.visual = visual
        self.width = visual.transformer.width
        self.patch_size = visual.patch_size[0]

    @property
    def embed_dim(self) -> int:
        """D, width of the pooled features."""
        return self.visual.output_dim

    @property
    def blocks(self) -> list[Block]:
        modules = self.visual.transformer.resblocks
        return [AttentionBlock(one) if type(one) is ResidualAttentionBlock else Block(one) for one in modules]

    @property
    def projects_patches(self) -> bool:
        """True if patch tokens can go through the norm and projection of the pooled features, as in OpenAI's CLIP."""
        return self.visual.attn_pool is None and self.visual.proj is not None

    @without_attention_maps()
    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        # an attentional pooler (CoCa) returns its queries instead of patches: take those from the last block
        extra = () if self.visual.attn_pool is None else (len(self.blocks),)
        with record_outputs(self.blocks, sorted({*layers, *extra})) as outputs:
            pooled_BD, patches_BLF = self.visual(images_B3HW)
        if extra:
            patches_BLF = outputs[extra[0]][:, 1:]
        return VisionOutput(pooled_BD, patches_BLF, {number: outputs[number] for number in layers})

    @without_attention_maps()
    def features(self, images_B3HW: Tensor) -> Tensor:
        """Return (B, D). Only the class token of the last block is pooled, so it alone is a query of that block."""
        visual, last = self.visual, self.visual.transformer.resblocks[-1]
        by_class_token = visual.attn_pool is None and visual.pool_type == "tok"
        if not (by_class_token and type(last) is ResidualAttentionBlock) or visual.transformer.grad_checkpointing:
            return super().features(images_B3HW)
        x_BTF = self.embed(images_B3HW)
        for block in self.blocks[:-1]:
            x_BTF = block(x_BTF)
        normed_BTF = last.ln_1(x_BTF)
        class_B1F = x_BTF[:, :1] + last.ls_1(last.attention(normed_BTF[:, :1], normed_BTF, normed_BTF))
        class_B1F = class_B1F + last.ls_2(last.mlp(last.ln_2(class_B1F)))
        return self.project(class_B1F[:, 0])

    def embed(self, images_B3HW: Tensor) -> Tensor:
        visual = self.visual
        x_BLF = visual.conv1(images_B3HW).flatten(2).permute(0, 2, 1)
        class_B1F = visual.class_embedding.view(1, 1, -1).expand(x_BLF.shape[0], -1, -1).to(x_BLF.dtype)
        x_BTF = torch.cat([class_B1F, x_BLF], dim=1) + visual.positional_embedding.to(x_BLF.dtype)
        return visual.ln_pre(visual.patch_dropout(x_BTF))

    def norm(self, x_BTF: Tensor) -> Tensor:
        """Return the tokens of any block after the tower's last layer norm."""
        return self.visual.ln_post(x_BTF)

    def project(self, x_BTF: Tensor) -> Tensor:
        """Return (…, D): tokens (…, F) of any block through the tower's last layer norm and projection."""
        return self.norm(x_BTF) @ self.visual.proj

    def readout(self, x_BTF: Tensor) -> Tensor:
        pooled_BF = self._pool_and_norm(x_BTF)
        return pooled_BF if self.visual.proj is None else pooled_BF @ self.visual.proj

    def _pool_and_norm(self, x_BTF: Tensor) -> Tensor:
        visual = self.visual
        if visual.attn_pool is None:
            return self.norm(self._pool(x_BTF)) if visual.final_ln_after_pool else self._pool(self.norm(x_BTF))
        if visual.attn_pool_contrastive is None:
            return self._pool(self.norm(visual.attn_pool(x_BTF)))
        x_BTF = self.norm(x_BTF)
        tokens = x_BTF if visual.attn_pool_type == "parallel" else visual.attn_pool(x_BTF)
        return visual.attn_pool_contrastive(tokens)

    def _pool(self, x_BTF: Tensor) -> Tensor:
        if self.visual.pool_type == "avg":
            return x_BTF[:, 1:].mean(dim=1)
        return x_BTF[:, 0] if self.visual.pool_type == "tok" else x_BTF


class TimmVision(VisionTrunk):
    """A timm model under open_clip's head: SigLIP and EVA transformers, ConvNeXt and others without blocks."""

    def __init__(self, visual: TimmModel) -> None:
        super().__init__()
        self.visual = visual
        self.width = visual.trunk.num_features
        self.patch_size = visual.trunk.feature_info[-1]["reduction"]

    @property
    def blocks(self) -> list[Block]:
        return [Block(module) for module in getattr(self.visual.trunk, "blocks", ())]

    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        trunk = self.visual.trunk
        with record_outputs(self.blocks, layers) as outputs:
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
    """OpenAI's modified ResNet: the cells of its last feature map are the patch tokens; it has no blocks to name."""

    patch_size = 32

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        self.visual = visual
        self.width = visual.attnpool.q_proj.in_features

    def forward(self, images_B3HW: Tensor, layers: Sequence[int] = ()) -> VisionOutput:
        with record_outputs(self.blocks, layers), record_outputs([Block(self.visual.layer4)], (1,)) as maps:
            pooled_BD = self.visual(images_B3HW)
        return VisionOutput(pooled_BD, maps[1].flatten(2).transpose(1, 2), {})


class OpenClipText(TextTrunk):
    """A causal text transformer of open_clip, projection included, run up to the end of the batch's longest text only.

    Exact, because no token sees a later one and the feature is read at the end-of-text token, before the cut. Cost:
    proportional to the longest text, rounded up to 16 tokens, instead of to the context length.
    """

    def __init__(self, text: TextTransformer) -> None:
        super().__init__()
        self.text = text
        self.width = text.width
        self.depth = len(text.transformer.resblocks)

    @property
    def blocks(self) -> list[Block]:
        modules, mask_LL = self.text.transformer.resblocks, self.text.attn_mask
        return [(CausalBlock if type(one) is ResidualAttentionBlock else MaskedBlock)(one, mask_LL) for one in modules]

    @property
    def projection(self) -> nn.Parameter | nn.Linear | None:
        """Map into the shared space: a matrix (F, D), a linear layer, or None for a tower without one."""
        return self.text.text_projection

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BLF = self.embed(tokens_BT)
        length = x_BLF.shape[1]
        x_BLF = self.text.transformer(x_BLF, attn_mask=self.text.attn_mask[:length, :length])
        return self.readout(x_BLF, tokens_BT)

    def embed(self, tokens_BT: Tensor, *, whole: bool = False) -> Tensor:
        """Return the tokens (B, L, F) before the first block, cut to the length of the longest text unless `whole`."""
        text, length = self.text, tokens_BT.shape[1]
        if not whole:
            length = self.real_length(self.ends(tokens_BT), length)
        x_BLF = text.token_embedding(tokens_BT[:, :length]).to(text.transformer.get_cast_dtype())
        return x_BLF + text.positional_embedding[:length].to(x_BLF.dtype)

    def readout(
        self, x_BLF: Tensor, tokens_BT: Tensor, *, projection: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the pooled features (B, D), read at the end-of-text token.

        Args:
            x_BLF: Tokens after the last block.
            tokens_BT: As `embed` took them.
            projection: Maps (B, F) in place of the tower's own projection.
        """
        rows_B = torch.arange(len(x_BLF), device=x_BLF.device)
        pooled_BF = self.text.ln_final(x_BLF[rows_B, self.ends(tokens_BT)])
        return (projection or self.project)(pooled_BF)

    def project(self, pooled_BF: Tensor) -> Tensor:
        """Return (B, D): pooled tokens through the tower's own projection."""
        projection = self.projection
        if projection is None:
            return pooled_BF
        return projection(pooled_BF) if isinstance(projection, nn.Linear) else pooled_BF @ projection

    def real_length(self, ends_B: Tensor, context: int) -> int:
        """Return the number of tokens that the longest text needs, rounded up to `LANES`; more would change nothing."""
        return min(-(-(int(ends_B.max()) + 1) // LANES) * LANES, context)

    def ends(self, tokens_BT: Tensor) -> Tensor:
        """Return the position (B,) of the end-of-text token: of the largest id, or of the tower's own `eos_id`."""
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


def make_towers(model: CustomTextCLIP) -> tuple[VisionTower, TextTower]:
    """Return the two towers of an open_clip model, sharing its weights."""
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
    """Return whether cutting texts is exact: causal attention, and the feature read at the end-of-text token."""
    return (
        isinstance(text, TextTransformer)
        and text.attn_mask is not None
        and text.cls_emb is None
        and text.pool_type in ("argmax", "eos")
    )
