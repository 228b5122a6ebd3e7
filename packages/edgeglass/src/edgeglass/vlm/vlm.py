"""A trained language model that sees, in use: questions about images, captions, conversations."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_common.backbones.language import LanguageModel
from clip_common.backbones.trunk import TokenSequence
from clip_common.devices import pick_device
from clip_common.errors import check_list
from edgeglass.aligner.items import load_item
from edgeglass.config import VlmConfig
from edgeglass.models.vlm.generation import Reading, collect, generate, read
from edgeglass.models.vlm.layout import EncodedConversation, TextLayout
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.models.vlm.sequences import pad_conversations
from edgeglass.models.vlm.trm import HaltPolicy
from edgeglass.vlm.building import Sight
from edgeglass.vlm.files import load_vlm, save_vlm

Turn = tuple[str, str]
"""A question and its answer."""


class VLM:
    """Answers questions with a trained model.

        vlm = VLM.from_pretrained("runs/edgeglass/seeing")
        vlm.ask("photo.jpg", "what colour is the ball?")
        vlm.ask("photo.jpg", ["how many balls are there?", "where is the dog?"])   # the image is read once
        chat = vlm.chat("photo.jpg")
        chat.ask("what is on the table?")
        chat.ask("what colour is it?")

    Args:
        model: The trained model.
        config: What it was built from.
        sight: Its image side.
        language: Its language model.
        device: Device to run on; default: a GPU if available.
        steps: Loops of the recursion for each token, 0 for none; None: as `trm` of the configuration says.

    Attributes:
        folder: Folder of the saved model; None for one that was not loaded.
    """

    def __init__(
        self,
        model: QwenVLM,
        config: VlmConfig,
        *,
        sight: Sight,
        language: LanguageModel,
        device: str | torch.device | None = None,
        steps: int | None = None,
    ) -> None:
        self.device = pick_device() if device is None else torch.device(device)
        self.model = model.eval().to(self.device)
        if steps is not None:
            self.model.halt = HaltPolicy(steps)
        self.config = config
        self.sight = sight
        self.language = language
        self.layout = make_layout(config, language)
        self.folder: Path | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        quantization: str | None = None,
        dtype: str | None = None,
        device: str | torch.device | None = None,
        steps: int | None = None,
    ) -> "VLM":
        """Load a run folder (its best weights) or a folder that `save_pretrained` wrote.

        Args:
            source: The folder.
            quantization: `none`, `4bit` or `8bit` of the language model; None: as it was trained.
            dtype: `float32` or `bfloat16` of the language model; None: as it was trained.
            device: Device to run on; default: a GPU if available.
            steps: Loops of the recursion for each token; None: as `trm` of the configuration says.

        Raises:
            ValueError: One line: see `edgeglass.vlm.files.load_vlm`.
        """
        model, config, sight, language, folder = load_vlm(source, quantization=quantization, dtype=dtype)
        vlm = cls(model, config, sight=sight, language=language, device=device, steps=steps)
        vlm.folder = folder.absolute()
        return vlm

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model: its configuration, and all weights that were trained."""
        save_vlm(Path(folder), self.model, self.config, sight=self.sight, language=self.language)

    @property
    def limit(self) -> int:
        """Most tokens of a conversation, image included."""
        return self.config.data.max_length or self.language.spec.context

    def ask(self, image: Any, question: str | Sequence[str], *, max_new_tokens: int | None = None) -> Any:
        """Return the answer to a question about an image, or one for each of several, for which it is read once.

        Args:
            image: Path, bytes or picture; None: the question is about no image.
            question: A text, or a list of texts that are answered independently.
            max_new_tokens: Most tokens of an answer; None: `answer.max_new_tokens`.

        Raises:
            ValueError: One line: an image that cannot be read, or an empty question.
        """
        questions = [question] if isinstance(question, str) else list(question)
        if not questions:
            return []
        reading, prefix = self.read_image(image)
        prompts = [self.encode_question([], one, prefix=prefix) for one in questions]
        embeds_BQE, valid_BQ = self.embed_left([prompt.ids for prompt in prompts])
        tokens = self.generate(reading.repeat(len(prompts)), embeds_BQE, valid_BQ, max_new_tokens=max_new_tokens)
        answers = [self.layout.decode(ids) for ids in collect(tokens, len(prompts))]
        return answers[0] if isinstance(question, str) else answers

    def caption(self, image: Any) -> str:
        """Return a caption of an image: the answer to `data.caption_prompt`."""
        answer: str = self.ask(image, self.config.data.caption_prompt)
        return answer

    def chat(self, image: Any = None) -> "Chat":
        """Start a conversation, about an image or about none."""
        return Chat(self, image)

    def stream(self, image: Any, question: str) -> Iterator[str]:
        """Yield the answer to a question in pieces of text, as they are generated."""
        yield from self.chat(image).stream(question)

    def answer_batch(
        self,
        images: TokenSequence | None,
        prompts: Sequence[EncodedConversation],
        owners: Sequence[int | None],
        *,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Return the answers to questions about several images, read together.

        Args:
            images: Features of the images, on the device; None: there are none.
            prompts: Of `encode_question`.
            owners: The image of each prompt, its row in `images`; None for one without an image.
            max_new_tokens: As for `ask`.
        """
        lengths = [] if images is None else self.model.prefix_lengths(images)
        rows = pad_conversations(prompts, owners, lengths, side="left").to(self.device)
        with torch.no_grad():
            embeds_BQE = self.model.embed(rows, images)
        reading = Reading.start(len(prompts), device=self.device)
        tokens = self.generate(reading, embeds_BQE, rows.valid(), max_new_tokens=max_new_tokens)
        return [self.layout.decode(ids) for ids in collect(tokens, len(prompts))]

    def encode_question(self, turns: Sequence[Turn], question: str, *, prefix: int | None) -> EncodedConversation:
        """Return the tokens of a question after earlier turns, cut so that an answer fits into the context.

        Args:
            turns: Questions with their answers.
            question: The question.
            prefix: Tokens of the image; None: the conversation is about none.

        Raises:
            ValueError: An empty question, or a context without room for it.
        """
        if not question.strip():
            raise ValueError("the question is empty: ask something")
        limit = self.limit - (prefix or 0) - self.config.answer.max_new_tokens
        return self.layout.encode_question(turns, question, image=prefix is not None, limit=limit)

    @torch.no_grad()
    def read_image(self, image: Any) -> tuple[Reading, int | None]:
        """Return the reading of an image with the text before it, and its number of tokens; None without an image.

        Raises:
            ValueError: One line: an image that cannot be read.
        """
        reading = Reading.start(1, device=self.device)
        if image is None:
            return reading, None
        prefix_1PE = self.model.project(self.load_features([image]))
        before_1Q = torch.tensor([self.layout.before_image], dtype=torch.long, device=self.device)
        before_1QE = self.model.decoder.embed(before_1Q)
        embeds_1TE = torch.cat((before_1QE, prefix_1PE.to(before_1QE.dtype)), dim=1)
        read(self.model, reading, embeds_1TE, torch.ones(embeds_1TE.shape[:2], dtype=torch.bool, device=self.device))
        return reading, prefix_1PE.shape[1]

    @torch.no_grad()
    def load_features(self, images: Sequence[Any]) -> TokenSequence:
        """Return the features of images, on the device.

        Raises:
            ValueError: One line: an image that cannot be read.
        """
        check_list(images, "images", empty=False)
        encoder = self.model.prefix.encoder
        batch = encoder.feed.batch([load_item(encoder, image) for image in images])
        assert isinstance(batch, Tensor)
        return self.model.prefix.trunk.sequence(batch.to(self.device))

    @torch.no_grad()
    def embed_left(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, Q, E) of texts padded on the left, and where they are no padding (B, Q)."""
        longest = max(map(len, ids))
        padded = torch.tensor([[0] * (longest - len(own)) + list(own) for own in ids], device=self.device)
        lengths_B = torch.tensor([len(own) for own in ids], device=self.device)
        valid_BQ = torch.arange(longest, device=self.device) >= longest - lengths_B[:, None]
        return self.model.decoder.embed(padded), valid_BQ

    def generate(
        self,
        reading: Reading,
        embeds_BQE: Tensor,
        valid_BQ: Tensor,
        *,
        max_new_tokens: int | None = None,
    ) -> Iterator[list[int | None]]:
        """Yield the tokens of answers, as `answer` of the configuration says; see `models.vlm.generation.generate`."""
        return generate(
            self.model,
            reading,
            embeds_BQE,
            valid_BQ,
            max_new_tokens=max_new_tokens or self.config.answer.max_new_tokens,
            stop_ids=self.language.spec.stop_ids,
            temperature=self.config.answer.temperature,
            generator=torch.Generator().manual_seed(self.config.trainer.seed),
        )


class Chat:
    """A conversation about an image, or about none; what was read is kept.

    Attributes:
        turns: Questions with their answers so far.
    """

    def __init__(self, vlm: VLM, image: Any = None) -> None:
        self.vlm = vlm
        self.turns: list[Turn] = []
        self._start, self._prefix = vlm.read_image(image)
        self._reading = self._start.repeat(1)
        self._read: list[int] = []

    def ask(self, question: str) -> str:
        """Return the answer to the next question."""
        for _ in self.stream(question):
            continue
        return self.turns[-1][1]

    def stream(self, question: str) -> Iterator[str]:
        """Yield the answer to the next question in pieces of text, as they are generated.

        Raises:
            ValueError: An empty question, or a context without room for it.
        """
        prompt = self.vlm.encode_question(self.turns, question, prefix=self._prefix)
        if list(prompt.ids[: len(self._read)]) != self._read:  # old turns were cut, or an answer has other tokens
            self._reading, self._read = self._start.repeat(1), []
        new = prompt.ids[len(self._read) :]
        before = self._reading.valid_BK.shape[1]
        embeds_1QE, valid_1Q = self.vlm.embed_left([new])
        answer: list[int] = []
        shown = ""
        for (token,) in self.vlm.generate(self._reading, embeds_1QE, valid_1Q):
            if token is None:
                break
            answer.append(token)
            text = self.vlm.layout.decode(answer)
            # half a character decodes to U+FFFD, and becomes another one with the next token
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        text = self.vlm.layout.decode(answer)
        if len(text) > len(shown):
            yield text[len(shown) :]
        self._read += [*new, *answer][: self._reading.valid_BK.shape[1] - before]
        self.turns.append((question, text))


def make_layout(config: VlmConfig, language: LanguageModel) -> TextLayout:
    """Return the layout of conversations of a configuration.

    Raises:
        ValueError: `data.layout=chat` with a tokenizer that cannot do it.
    """
    return TextLayout(language.tokenizer, kind=config.data.layout, stop_ids=language.spec.stop_ids)
