"""QwenVLM: image tokens, a projector, a decoder, and a recursion on its last hidden states.

Shapes: R rows, T tokens of a row, G images, P prefix tokens, C their width, E width of the decoder, N supervised
tokens, S conversations, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from clip_common.backbones.trunk import TokenSequence
from edgeglass.config import TrmConfig
from edgeglass.models.vlm.prefix import VisionPrefix, VisionProjector
from edgeglass.models.vlm.sequences import NOT_SUPERVISED, Rows
from edgeglass.models.vlm.trm import HaltPolicy, LatentRecursion, supervise
from edgeglass.models.vlm.trm_decoder import TRMDecoder


@dataclass(frozen=True)
class VlmOutput:
    """Result of a forward pass.

    Attributes:
        loss: Scalar: what training minimises. With loops, the loss of the halting head is part of it.
        loops: Mean cross-entropy over supervised tokens after each supervised number of loops; one without a recursion.
        losses_S: Mean cross-entropy of each conversation after the last loop (S,).
        right_S: Whether every supervised token of a conversation was the most probable one (S,): then a greedy answer
            to each of its questions, after the true answers before it, is the true one.
        logits_NV: Logits of the supervised tokens after the last loop.
        targets_N: Their ids.
    """

    loss: Tensor
    loops: list[Tensor]
    losses_S: Tensor
    right_S: Tensor
    logits_NV: Tensor
    targets_N: Tensor


class QwenVLM(nn.Module):
    """A decoder that reads images.

    Args:
        decoder: `QwenDecoder` or `TRMDecoder`.
        prefix: Frozen image tokens.
        vision_proj: From their width C to the decoder's E.
        recursion: Refines the decoder's last hidden states; None: none.
        trm: Which loops are supervised, and when tokens stop looping in inference.
    """

    def __init__(
        self,
        decoder: Any,
        prefix: VisionPrefix,
        vision_proj: VisionProjector,
        *,
        recursion: LatentRecursion | None = None,
        trm: TrmConfig,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.prefix = prefix
        self.vision_proj = vision_proj
        self.recursion = recursion
        self.supervise = trm.supervise
        self.halt = HaltPolicy.from_config(trm)

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.vision_proj.parameters()).device

    def prefix_lengths(self, images: TokenSequence) -> list[int]:
        """Return the number of prefix tokens of each image, from the features of the images."""
        return [self.prefix.count(length) for length in images.mask.sum(dim=1).tolist()]

    def project(self, images: TokenSequence) -> Tensor:
        """Return the prefix embeddings (G, P, E) of the features of images."""
        tokens_GPC = self.prefix(images).tokens
        projected: Tensor = self.vision_proj(tokens_GPC.to(self.vision_proj.factor.dtype))
        return projected

    def embed(self, rows: Rows, images: TokenSequence | None) -> Tensor:
        """Return the embeddings (R, T, E) of rows of image and text tokens."""
        embeds_RTE: Tensor = self.decoder.embed(rows.ids_RT)
        if images is None:
            return embeds_RTE
        prefix_GPE = self.project(images)
        flat_RT = rows.image_RT * prefix_GPE.shape[1] + rows.place_RT
        shown_RT = rows.image_RT >= 0
        return embeds_RTE.masked_scatter(
            shown_RT[..., None], prefix_GPE.flatten(0, 1)[flat_RT[shown_RT]].to(embeds_RTE.dtype)
        )

    def states(
        self, embeds_RTE: Tensor, *, mask_R1TK: Tensor, positions_RT: Tensor, steps: int | None = None
    ) -> list[Tensor]:
        """Return hidden states (R, T, E) after each number of loops; a decoder without loops gives one.

        Args:
            embeds_RTE: Of image and text tokens.
            mask_R1TK: Whether a token attends to another, bool.
            positions_RT: Positions, long.
            steps: Loops; None: as many as in training. 0 is the decoder alone.
        """
        given: dict[str, Any] = {"mask_B1QK": mask_R1TK, "positions_BQ": positions_RT}
        states = self.decoder.states(embeds_RTE, steps=steps, **given)
        return states if self.recursion is None else self.recursion(states[-1], steps=steps, **given)

    def final_state(
        self,
        embeds_RTE: Tensor,
        *,
        mask_R1TK: Tensor,
        positions_RT: Tensor,
        cache: Any = None,
        halt: HaltPolicy | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return hidden states (R, T, E) from which to predict, and the loops (R, T) that each token took.

        Args:
            embeds_RTE: Of image and text tokens.
            mask_R1TK: Whether a token attends to another, bool; K: with those of the cache.
            positions_RT: Positions, long.
            cache: Keys and values of earlier tokens; it grows by T. All calls on a cache have the same `halt`.
            halt: When tokens stop looping; None: as `trm` says. 0 steps are the decoder alone.
        """
        halt = self.halt if halt is None else halt
        given: dict[str, Any] = {"mask_B1QK": mask_R1TK, "positions_BQ": positions_RT, "cache": cache}
        if isinstance(self.decoder, TRMDecoder):
            return self.decoder.final_state(embeds_RTE, halt=halt, **given)
        state_RTE = self.decoder.states(embeds_RTE, **given)[-1]
        if self.recursion is None:
            return state_RTE, torch.zeros_like(positions_RT)
        return self.recursion.final_state(state_RTE, first_layer=self.decoder.layers, halt=halt, **given)

    def forward(self, rows: Rows, images: TokenSequence | None) -> VlmOutput:
        """Return the loss of rows; logits are computed where something is supervised, and nowhere else.

        Args:
            rows: At least one token is supervised.
            images: Features of the images that the rows show; None: they show none.

        Raises:
            ValueError: Nothing is supervised.
        """
        taught_RT = rows.targets_RT != NOT_SUPERVISED
        if not taught_RT.any():
            raise ValueError("no token of the batch is supervised: every conversation needs an answer")
        embeds_RTE = self.embed(rows, images)
        states = self.states(embeds_RTE, mask_R1TK=rows.mask(), positions_RT=rows.positions_RT)
        targets_N = rows.targets_RT[taught_RT]
        loops, halting = [], []
        for state_RTE in states if self.supervise != "last" else states[-1:]:
            state_NE = state_RTE[taught_RT]
            logits_NV = self.decoder.logits(state_NE).float()
            losses_N = cross_entropy(logits_NV, targets_N, reduction="none")
            right_N = logits_NV.argmax(dim=-1) == targets_N
            loops.append(losses_N)
            if self.halting is not None:
                # its own task: it learns from the states, and they do not learn from it
                guess_N = self.halting.halt_logits(state_NE.detach()).float()
                halting.append(binary_cross_entropy_with_logits(guess_N, right_N.float()))
        loss = supervise(loops, self.supervise)
        if images is None:  # a rank whose batch has no image still gives the projector a gradient
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self.vision_proj.parameters())
        if halting:
            loss = loss + torch.stack(halting).mean()
        owner_N = rows.conversation_RT[taught_RT]
        tokens_S = torch.bincount(owner_N)
        total_S = losses_N.detach().new_zeros(len(tokens_S)).index_add(0, owner_N, losses_N.detach())
        wrong_S = torch.bincount(owner_N, weights=(~right_N).float())
        return VlmOutput(
            loss, [one_N.mean() for one_N in loops], total_S / tokens_S, wrong_S == 0, logits_NV, targets_N
        )

    @property
    def halting(self) -> Any:
        """The part with a halting head; None without loops."""
        return self.decoder if isinstance(self.decoder, TRMDecoder) else self.recursion
