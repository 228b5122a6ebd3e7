"""Language models of random weights for tests, as folders of transformers, and models that see through `tiny`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_common.backbones.language import LanguageModel, load_language
from clip_common.backbones.trunk import TokenSequence
from edgeglass.config import AdapterConfig, TrmConfig
from edgeglass.models.vlm.layout import TextLayout
from edgeglass.models.vlm.prefix import VisionProjector
from edgeglass.models.vlm.qwen import QwenDecoder
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.models.vlm.trm import LatentRecursion
from edgeglass.models.vlm.trm_decoder import TRMDecoder

END = "<|end|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTIONS = ("what colour is the mug?", "how many?", "is there a red star left of the blue umbrella?", "where?")
ANSWERS = ("red", "4", "yes", "bottom right")
WIDTH = 32
PREFIX_WIDTH = 12


def save_language_toy(folder: Path, *, seed: int = 0, chat: bool = True, context: int = 512) -> Path:
    """A Qwen2 of two layers over bytes, without a padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(alphabet)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, model_max_length=context)
    tokenizer.add_tokens(["<|user|>", "<|assistant|>"], special_tokens=True)
    tokenizer.chat_template = TEMPLATE if chat else None
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trm_config(**changes: Any) -> TrmConfig:
    return TrmConfig(**({"steps": 2, "inner": 2, "width": 16, "heads": 2} | changes))


class ToyPrefix(torch.nn.Module):
    """Image tokens as they come: what `VisionPrefix` is for an encoder, without one."""

    width = PREFIX_WIDTH

    def forward(self, features: TokenSequence) -> TokenSequence:
        return features

    def count(self, length: int) -> int:
        return length


def build_toy(kind: str, language: LanguageModel, *, seed: int = 0, lora: bool = True, **trm: Any) -> QwenVLM:
    """A model that sees, of kind `qwen`, `qwen+trm` (its gate open) or `trm`, with random weights everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = trm_config(**trm) if kind != "qwen" else TrmConfig()
        decoder: Any
        if kind == "trm":
            decoder = TRMDecoder(language.spec.vocabulary, settings, 512)
            torch.nn.init.normal_(decoder.embedding.weight, std=0.5)
        else:
            decoder = QwenDecoder(language.model, lora=AdapterConfig(r=2, alpha=8) if lora else None)
            for name, parameter in decoder.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
        recursion = LatentRecursion(decoder.width, settings) if kind == "qwen+trm" else None
        if recursion is not None:
            torch.nn.init.normal_(recursion.gate_E)
        proj = VisionProjector("mlp2x_gelu", width=PREFIX_WIDTH, decoder_width=decoder.width)
        model = QwenVLM(decoder, ToyPrefix(), proj, recursion=recursion, trm=settings)  # type: ignore[arg-type]
    return model.eval()


def load_toy(folder: Path, **changes: Any) -> LanguageModel:
    """The language model of a folder, made there if it is absent."""
    return load_language(folder if folder.exists() else save_language_toy(folder), **changes)


def make_layout(language: LanguageModel, kind: Any = "plain") -> TextLayout:
    return TextLayout(language.tokenizer, kind=kind, stop_ids=language.spec.stop_ids)


def draw_images(*lengths: int, seed: int = 1) -> TokenSequence:
    """Features of images with different numbers of tokens, padded with NaN that nothing may read."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    tokens = torch.full((len(lengths), longest, PREFIX_WIDTH), 0.0)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randn(length, PREFIX_WIDTH, generator=generator)
    mask: Tensor = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return TokenSequence(tokens, mask)
