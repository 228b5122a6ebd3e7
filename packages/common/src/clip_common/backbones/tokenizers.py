"""Tokenizers: texts to the input of a text tower, with a key for caches and files to restore them from.

Shapes: B texts, L tokens.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from clip_common.backbones.hub import TOKENIZER_FILES, fetch_folder, find_missing_of_tokenizer
from clip_common.backbones.huggingface import one_line, without_code
from clip_common.backbones.spec import BackboneError, Tokens
from clip_common.errors import check_list

SPECIAL_TOKENS = 3
"""Most tokens that a tokenizer adds to those of the words: a start, an end, and a mark in front of the first word."""


class Tokenizer(Protocol):
    """`tokenizer(["a dog", …])` returns tokens for the text tower of the same bundle."""

    @property
    def key(self) -> str:
        """Equal keys, equal tokens."""

    def __call__(self, texts: Sequence[str]) -> Tokens: ...

    def save(self, folder: Path) -> None:
        """Write the files from which the tokenizer is restored without a network."""


class ClipTokenizer:
    """The tokenizer of an open_clip text tower: (B, context length) ids, padded with zeros or the model's own padding.

    Args:
        text_config: `text_cfg` of an open_clip model configuration.
        folder: With the files of a tokenizer of transformers that is not in the hub's cache.
        wanted: Name to prefetch it by; empty: the repository of the tokenizer itself.

    Attributes:
        folder: With the files of a tokenizer of transformers; None for open_clip's own.

    Raises:
        BackboneError: A tokenizer of transformers that is neither in `folder` nor cached, or cannot be read.
    """

    def __init__(self, text_config: Mapping[str, Any], *, folder: Path | None = None, wanted: str = "") -> None:
        from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

        options = dict(text_config.get("tokenizer_kwargs") or {})
        context = text_config.get("context_length", DEFAULT_CONTEXT_LENGTH)
        hub_name = text_config.get("hf_tokenizer_name")
        self.folder = None if hub_name is None else folder or _find_tokenizer_folder(hub_name, wanted=wanted)
        if self.folder is None:
            self.encode = SimpleTokenizer(context_length=context, **options)
            described = f"open_clip {self.encode.vocab_size}"
        else:
            mode = text_config.get("tokenizer_mode")
            given = options | {"trust_remote_code": False}  # the options come with the model
            try:
                with without_code():
                    self.encode = HFTokenizer(str(self.folder), context_length=context, tokenizer_mode=mode, **given)
            # a damaged folder raises anything
            except Exception as error:
                raise BackboneError(
                    f"{self.folder} has no tokenizer that transformers can read: {one_line(error)}"
                ) from error
            described = f"{mode} {hash_tokenizer(self.encode.tokenizer)}"
        self.context_length = context
        self.key = json.dumps([described, context, options], sort_keys=True)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        check_list(texts, "texts", empty=False)
        return self.encode(list(texts))

    def save(self, folder: Path) -> None:
        if hasattr(self.encode, "save_pretrained"):
            self.encode.save_pretrained(folder)


class TransformersTokenizer:
    """A tokenizer of transformers: a dict of tensors (B, L), padded to the longest text of the batch.

    Args:
        tokenizer: A fast tokenizer.
        context_length: Longer texts are cut.
        pad_to_context: Pad to the context length instead, for models that were trained so (SigLIP).
    """

    def __init__(self, tokenizer: Any, *, context_length: int, pad_to_context: bool = False) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.padding = "max_length" if pad_to_context else "longest"
        self.key = json.dumps([hash_tokenizer(tokenizer), context_length, self.padding])

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        check_list(texts, "texts", empty=False)
        encoded = self.tokenizer(
            list(texts), padding=self.padding, truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return dict(encoded)

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


class SentenceTokenizer:
    """The tokenizer of a SentenceTransformer: its default prompt, cut at its length, padded to the batch's longest."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.key = json.dumps(
            [hash_tokenizer(model.tokenizer), model.max_seq_length, model.default_prompt_name, model.prompts]
        )

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        check_list(texts, "texts", empty=False)
        encoded = self.model.preprocess(list(texts), prompt=self.model.prompts.get(self.model.default_prompt_name))
        if "prompt_length" in encoded:  # a pooling may leave the prompt out; tokens have B rows each
            encoded["prompt_length"] = torch.full((len(texts),), encoded["prompt_length"])
        return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}

    def save(self, folder: Path) -> None:
        self.model.tokenizer.save_pretrained(folder)


class MissingTokenizer:
    """In the place of the tokenizer that a model's folder lacks: its text tower takes tokens, but texts are refused.

    Args:
        folder: Of the model.
    """

    key = "none"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, texts: Sequence[str]) -> Tokens:
        raise self._error()

    def save(self, folder: Path) -> None:
        raise self._error()

    def _error(self) -> BackboneError:
        return BackboneError(
            f"{self.folder} has no tokenizer: save the model's tokenizer there (save_pretrained), or give tokens to "
            "the text tower"
        )


def knows_no_word(tokenizer: Tokenizer, text: str) -> bool:
    """Return True if every token is the unknown token; byte-level tokenizers have none."""
    words = _words_of(tokenizer)
    unknown = None if words is None else words.unk_token_id
    if unknown is None:
        return False
    ids = words(text, add_special_tokens=False)["input_ids"]
    tokens = zip(ids, words.convert_ids_to_tokens(ids), strict=True)
    return not any(id != unknown and token.strip("▁") for id, token in tokens)  # ▁ is SentencePiece's word boundary


def find_cut(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the positions of the texts whose end the tokenizer leaves out, because they have too many tokens."""
    check_list(texts, "texts")
    if isinstance(tokenizer, SentenceTokenizer):
        prompt = tokenizer.model.prompts.get(tokenizer.model.default_prompt_name) or ""
        words, limit = tokenizer.model.tokenizer, tokenizer.model.max_seq_length
        texts = [prompt + text for text in texts]
    else:
        assert isinstance(tokenizer, ClipTokenizer | TransformersTokenizer)
        words, limit = _words_of(tokenizer), tokenizer.context_length
    # a token holds at least one byte, so that most texts need not be tokenized to know
    long = [place for place, text in enumerate(texts) if len(text.encode()) + SPECIAL_TOKENS > limit]
    if not long:
        return []
    chosen = [texts[place] for place in long]
    if words is None:
        assert isinstance(tokenizer, ClipTokenizer)
        lengths = [len(tokenizer.encode.encode(text)) + 2 for text in chosen]
    else:
        if isinstance(tokenizer, ClipTokenizer):
            chosen = [tokenizer.encode.clean_fn(text) for text in chosen]
        lengths = [len(ids) for ids in words(chosen, truncation=False, verbose=False)["input_ids"]]
    return [place for place, length in zip(long, lengths, strict=True) if length > limit]


def _words_of(tokenizer: Tokenizer) -> Any:
    """Return the tokenizer of transformers behind a tokenizer; None for open_clip's own."""
    if isinstance(tokenizer, SentenceTokenizer):
        return tokenizer.model.tokenizer
    if isinstance(tokenizer, TransformersTokenizer):
        return tokenizer.tokenizer
    return getattr(tokenizer.encode, "tokenizer", None) if isinstance(tokenizer, ClipTokenizer) else None


def hash_tokenizer(tokenizer: Any) -> str:
    """Return a hash of everything that decides the output of a tokenizer of transformers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{type(tokenizer).__name__} {content}".encode()).hexdigest()[:32]


def _find_tokenizer_folder(name: str, *, wanted: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    return fetch_folder(name, files=TOKENIZER_FILES, find_missing=find_missing_of_tokenizer, wanted=wanted)
