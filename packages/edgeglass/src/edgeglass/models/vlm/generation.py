"""Answers, token by token: keys and values of what was read are kept, and those of an image serve several questions.

Shapes: B sequences, Q new tokens, K tokens read, E width of the decoder, V vocabulary, L tokens of an answer.
"""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_common.backbones.language import make_cache
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.models.vlm.trm import HaltPolicy


@dataclass
class Reading:
    """What B sequences have read: keys and values of their tokens, of which padding does not count.

    Attributes:
        cache: Keys and values of all layers.
        valid_BK: Which tokens count, bool.
    """

    cache: Any
    valid_BK: Tensor

    @classmethod
    def start(cls, count: int, *, device: torch.device) -> "Reading":
        """Return the reading of `count` sequences that have read nothing."""
        return cls(make_cache(), torch.zeros(count, 0, dtype=torch.bool, device=device))

    def repeat(self, count: int) -> "Reading":
        """Return a copy with each sequence `count` times, such as an image for several questions."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(count)
        return Reading(cache, self.valid_BK.repeat_interleave(count, dim=0))


def read(
    model: QwenVLM, reading: Reading, embeds_BQE: Tensor, valid_BQ: Tensor, *, halt: HaltPolicy | None = None
) -> Tensor:
    """Read Q more tokens, and return their hidden states (B, Q, E) after the last loop.

    Args:
        model: In eval mode.
        reading: Grows by Q tokens.
        embeds_BQE: Of the tokens.
        valid_BQ: False for padding, which nothing attends to and which takes no position.
        halt: When tokens stop looping, the same in every call on a reading; None: as the model's `trm` says.
    """
    before = reading.valid_BK.shape[1]
    reading.valid_BK = valid_BK = torch.cat((reading.valid_BK, valid_BQ), dim=1)
    count = valid_BQ.shape[1]
    positions_BQ = (valid_BK.long().cumsum(dim=1) - 1).clamp_min(0)[:, before:]
    earlier_QK = torch.ones(count, before + count, dtype=torch.bool, device=valid_BQ.device).tril(before)
    itself_QK = torch.zeros_like(earlier_QK)
    itself_QK[:, before:].fill_diagonal_(True)
    mask_B1QK = ((earlier_QK & valid_BK[:, None, :]) | itself_QK)[:, None]
    state_BQE, _ = model.final_state(
        embeds_BQE, mask_R1TK=mask_B1QK, positions_RT=positions_BQ, cache=reading.cache, halt=halt
    )
    return state_BQE


@torch.no_grad()
def generate(
    model: QwenVLM,
    reading: Reading,
    embeds_BQE: Tensor,
    valid_BQ: Tensor,
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    halt: HaltPolicy | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of each sequence; None for one that has ended. The stop token is not yielded.

    Args:
        model: In eval mode.
        reading: What was read before, such as the image; it grows.
        embeds_BQE: Of the tokens to read first, such as questions; Q from 1. Padded on the left.
        valid_BQ: False for padding.
        max_new_tokens: Most tokens of an answer.
        stop_ids: Ids that end an answer.
        temperature: 0: the most probable token; above 0: drawn from the softmax of logits / temperature.
        generator: Of the draws, on the CPU.
        halt: When tokens stop looping; None: as the model's `trm` says.
    """
    stop = torch.tensor(sorted(stop_ids), device=embeds_BQE.device)
    ended_B = torch.zeros(len(embeds_BQE), dtype=torch.bool, device=embeds_BQE.device)
    for _ in range(max_new_tokens):
        state_BE = read(model, reading, embeds_BQE, valid_BQ, halt=halt)[:, -1]
        next_B = pick_tokens(model.decoder.logits(state_BE), temperature=temperature, generator=generator)
        ended_B = ended_B | torch.isin(next_B, stop)
        yield [None if ended else token for token, ended in zip(next_B.tolist(), ended_B.tolist(), strict=True)]
        if bool(ended_B.all()):
            return
        embeds_BQE = model.decoder.embed(next_B[:, None])
        valid_BQ = torch.ones_like(next_B[:, None], dtype=torch.bool)


def collect(steps: Iterator[list[int | None]], count: int) -> list[list[int]]:
    """Return the tokens of each of `count` answers that `generate` yields."""
    answers: list[list[int]] = [[] for _ in range(count)]
    for tokens in steps:
        for answer, token in zip(answers, tokens, strict=True):
            if token is not None:
                answer.append(token)
    return answers


def pick_tokens(logits_BV: Tensor, *, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Return the next token (B,) of each sequence: the most probable one, or a draw."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities_BV = (logits_BV.float() / temperature).softmax(dim=-1).cpu()
    return torch.multinomial(probabilities_BV, 1, generator=generator)[:, 0].to(logits_BV.device)
