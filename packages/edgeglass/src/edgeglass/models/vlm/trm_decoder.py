"""A recursive decoder trained from scratch.

Shapes: B batch, Q tokens of this call, K tokens in the cache and of this call, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from edgeglass.config.vlm import TrmConfig
from edgeglass.models.vlm.trm import EPS, HaltingHead, HaltPolicy, KeyValueCache, LatentLoops, halting_test


class TRMDecoder(nn.Module):
    """Token embedding, `LatentLoops` with the normed embeddings as input, and a head tied to the embedding.

    It reads a prefix as a language model does: as embeddings before those of the text. `LatentLoops` ends in an
    RMSNorm, which is the final norm before the head.

    Args:
        vocabulary: V.
        config: Sizes; `steps` is the number of loops unless a call gives another.
        context: Most tokens of a sequence in training, which rotary positions do not limit.
    """

    def __init__(self, vocabulary: int, config: TrmConfig, context: int) -> None:
        super().__init__()
        self.width = config.width
        self.steps = config.steps
        self.context = context
        self.embedding = nn.Embedding(vocabulary, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.norm = nn.RMSNorm(config.width, eps=EPS)
        self.loops = LatentLoops(config)
        self.halting = HaltingHead(config.width)

    def embed(self, ids_BQ: Tensor) -> Tensor:
        """Return the embeddings (B, Q, D) of tokens."""
        return self.embedding(ids_BQ)

    def states(
        self,
        embeds_BQD: Tensor,
        *,
        mask_B1QK: Tensor,
        positions_BQ: Tensor,
        cache: KeyValueCache | None = None,
        steps: int | None = None,
    ) -> list[Tensor]:
        """Return the hidden states (B, Q, D) after loops 1, 2, … `steps`.

        Args:
            embeds_BQD: Embeddings of the prefix and of tokens.
            mask_B1QK: True where a token may attend; each attends to itself at least.
            positions_BQ: Positions of the tokens.
            cache: Keys and values of earlier tokens, written with the same `steps`.
            steps: Loops, more or fewer than in training; None: those of the settings.

        Raises:
            ValueError: No loops.
        """
        steps = self.steps if steps is None else steps
        answers, _ = self._run(embeds_BQD, mask_B1QK, positions_BQ, cache, HaltPolicy(steps))
        return answers

    def final_state(
        self,
        embeds_BQD: Tensor,
        *,
        mask_B1QK: Tensor,
        positions_BQ: Tensor,
        halt: HaltPolicy,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states (B, Q, D) from which to predict, and the loops (B, Q) that each token took.

        The arguments are those of `states`, with `halt` instead of `steps`; all calls on a cache share one policy.
        """
        answers, loops_BQ = self._run(embeds_BQD, mask_B1QK, positions_BQ, cache, halt)
        return answers[-1], loops_BQ

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (..., V) of the next token from hidden states (..., D)."""
        return linear(states, self.embedding.weight)

    def halt_logits(self, states: Tensor) -> Tensor:
        """Return logits (...) of the probability that the tokens predicted from states (..., D) are right."""
        return self.halting(states)

    def _run(
        self,
        embeds_BQD: Tensor,
        mask_B1QK: Tensor,
        positions_BQ: Tensor,
        cache: KeyValueCache | None,
        halt: HaltPolicy,
    ) -> tuple[list[Tensor], Tensor]:
        if halt.steps < 1:
            raise ValueError(f"steps={halt.steps}: a recursive decoder has no prediction before loop 1; give 1 or more")
        return self.loops(
            self.norm(embeds_BQD.to(self.embedding.weight.dtype)),
            mask_B1QK=mask_B1QK,
            positions_BQ=positions_BQ,
            cache=cache,
            first_layer=0,
            steps=halt.steps,
            has_halted=halting_test(self.halting, halt, read=torch.nn.Identity()),
        )
