"""A language model that sees, of random weights at the shape of Qwen2.5-0.5B, with images and conversations for it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clip_common.backbones.trunk import TokenSequence
from edgeglass.config import AdapterConfig, TrmConfig
from edgeglass.models.vlm.layout import EncodedConversation
from edgeglass.models.vlm.prefix import VisionProjector
from edgeglass.models.vlm.qwen import QwenDecoder
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.models.vlm.trm import LatentRecursion


@dataclass(frozen=True)
class Shape:
    """Sizes of the language model, and of what it reads.

    Attributes:
        prefix: Prefix tokens of an image in the parts `reuse` and `memory`.
        read: Prefix tokens before the answer in the part `decoding`.
        shown: Prefix tokens of an image in the part `packing`.
        new: Tokens of an answer in the part `decoding`.
        batches: Sequences in the part `decoding`.
        images: Images in the part `reuse`.
        conversations: In the part `packing`.
        row: Most tokens of a packed row.
        pairs: Pairs of measurements.
    """

    layers: int = 24
    width: int = 896
    heads: int = 14
    groups: int = 2
    inside: int = 4864
    vocabulary: int = 151_936
    rank: int = 64
    prefix: int = 576
    read: int = 64
    shown: int = 64
    new: int = 64
    batches: tuple[int, ...] = (1,)
    images: tuple[int, ...] = (1,)
    conversations: int = 24
    row: int = 512
    pairs: int = 1


ON_CPU = Shape()
ON_GPU = Shape(read=576, shown=576, batches=(1, 64), images=(1, 32), conversations=32, row=2048, pairs=3)
QUICK = Shape(
    layers=2, width=64, heads=4, groups=2, inside=128, vocabulary=512, rank=4, prefix=24, read=8, shown=8, new=6,
    conversations=6, row=96, pairs=2,
)  # fmt: skip


class GivenTokens(nn.Module):
    """Image tokens as they come: what `VisionPrefix` is for an encoder, without one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: TokenSequence) -> TokenSequence:
        return features

    def count(self, length: int) -> int:
        return length


def build_model(
    shape: Shape, device: torch.device, *, trm: TrmConfig | None = None, lora: bool = False, checkpointing: bool = False
) -> QwenVLM:
    """Return a model of random weights; its recursion, if it has one, changes the hidden states."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inside,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        language = Qwen2ForCausalLM(config)
        language = language.to(dtype_on(device)).requires_grad_(False).eval()
        decoder = QwenDecoder(language, lora=AdapterConfig(r=shape.rank) if lora else None, checkpointing=checkpointing)
        recursion = LatentRecursion(shape.width, trm) if trm else None
        if recursion is not None:
            nn.init.normal_(recursion.gate_E, std=0.1)
            recursion.to(decoder.dtype)
        tokens: Any = GivenTokens(shape.width)
        proj = VisionProjector("linear", width=shape.width, decoder_width=shape.width).to(decoder.dtype)
    return QwenVLM(decoder, tokens, proj, recursion=recursion, trm=trm or TrmConfig()).to(device).eval()


def dtype_on(device: torch.device) -> torch.dtype:
    """Return the number format of the weights: bfloat16 on a GPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def draw_images(shape: Shape, count: int, tokens: int, device: torch.device) -> TokenSequence:
    """Return the features of `count` images of `tokens` tokens."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(count, tokens, shape.width, generator=generator).to(device)
    return TokenSequence(drawn, torch.ones(count, tokens, dtype=torch.bool, device=device))


def draw_conversation(shape: Shape, asked: int, answered: int, seed: int) -> EncodedConversation:
    """Return a conversation of one question and one answer, of random ids."""
    ids = torch.randint(shape.vocabulary, (asked + answered,), generator=torch.Generator().manual_seed(seed)).tolist()
    return EncodedConversation((), tuple(ids), (False,) * asked + (True,) * answered)
