"""A small recursive network: its layer, its loops over two latent states, and their use on a language model.

Shapes: B batch, Q tokens of this call, K tokens in the cache and of this call, E width of the language model, D width
of the latent states, H heads, d width of a head, T loops.

A *virtual layer* is one application of a layer in the unrolled recursion. Each has its own keys and values, and so its
own index in the cache: a token that is decoded later finds in virtual layer i what the tokens before it gave there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, rms_norm, scaled_dot_product_attention, silu

from edgeglass.config.vlm import TrmConfig
from edgeglass.models.vlm.rotary import Rotary, compute_rotary, rotate

EPS = 1e-6
GATES: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": silu, "geglu": gelu, "reglu": relu}


class KeyValueCache(Protocol):
    """Keys and values of earlier tokens, by layer, such as transformers' DynamicCache."""

    def update(self, keys: Tensor, values: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, Q, d) of a layer and return all (B, H, K, d) that it has."""


@dataclass(frozen=True)
class HaltPolicy:
    """When tokens stop looping in inference.

    Attributes:
        steps: Most loops.
        threshold: A token stops at the first loop after which the halting head gives at least this probability that
            its prediction is right; None: every token takes `steps` loops.
    """

    steps: int
    threshold: float | None = None

    @classmethod
    def from_config(cls, config: TrmConfig) -> Self:
        """Return the policy that `halt`, `steps`, `max_steps` and `threshold` of the settings ask for."""
        most = config.steps if config.halt == "never" else (config.max_steps or config.steps)
        return cls(most, config.threshold if config.halt == "threshold" else None)


class TRMLayer(nn.Module):
    """Attention with rotary positions, then a gated feed-forward layer; both normed before, with residuals.

    Args:
        width: D.
        heads: H; D / H is an even whole number.
        ff_mult: Width of the feed-forward layer, as a multiple of D.
        glu: Its gate: `swiglu`, `geglu` or `reglu`.

    Reference:
        Shazeer, GLU Variants Improve Transformer, 2020 (without biases, as there).
    """

    def __init__(self, width: int, *, heads: int, ff_mult: float, glu: str) -> None:
        super().__init__()
        self.heads = heads
        self.gate = GATES[glu]
        self.norm_attention = nn.RMSNorm(width, eps=EPS)
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key_value = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.norm_feed_forward = nn.RMSNorm(width, eps=EPS)
        inside = feed_forward_width(width, ff_mult)
        self.to_gated = nn.Linear(width, 2 * inside, bias=False)
        self.from_gated = nn.Linear(inside, width, bias=False)

    def forward(
        self,
        x_BQD: Tensor,
        *,
        mask_B1QK: Tensor,
        rotary: Rotary,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        active_BQ: Tensor | None = None,
    ) -> Tensor:
        """Return the layer's output (B, Q, D).

        Args:
            x_BQD: Tokens.
            mask_B1QK: True where a token may attend.
            rotary: Angles of the tokens' positions, of `compute_rotary`.
            cache: Takes the tokens' keys and values and gives those of earlier tokens too.
            layer: Index of this virtual layer in the cache.
            active_BQ: False where a token passes through unchanged; it gives keys and values all the same. None:
                every token is active.
        """
        normed_BQD = self.norm_attention(x_BQD)
        query_BHQd = rotate(self._split(self.to_query(normed_BQD)), rotary)
        key_BHKd, value_BHKd = self._keys_values(normed_BQD, rotary)
        if cache is not None:
            key_BHKd, value_BHKd = cache.update(key_BHKd, value_BHKd, layer)
        attended_BHQd = scaled_dot_product_attention(query_BHQd, key_BHKd, value_BHKd, attn_mask=mask_B1QK)
        out_BQD = x_BQD + self.to_out(attended_BHQd.transpose(1, 2).flatten(2))
        gate_BQF, content_BQF = self.to_gated(self.norm_feed_forward(out_BQD)).chunk(2, dim=-1)
        out_BQD = out_BQD + self.from_gated(self.gate(gate_BQF) * content_BQF)
        return out_BQD if active_BQ is None else torch.where(active_BQ[..., None], out_BQD, x_BQD)

    def keys_values(self, x_BQD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Return the keys and values (B, H, Q, d) of tokens: all that a virtual layer needs of halted ones."""
        return self._keys_values(self.norm_attention(x_BQD), rotary)

    def _keys_values(self, normed_BQD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        key_BHQd, value_BHQd = (self._split(part) for part in self.to_key_value(normed_BQD).chunk(2, dim=-1))
        return rotate(key_BHQd, rotary), value_BHQd

    def _split(self, x_BQD: Tensor) -> Tensor:
        return x_BQD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LatentLoops(nn.Module):
    """Loops of one small network over an answer state y and a reasoning state z, given an input x per token.

    One loop: n times z = net(z + y + x), then y = net(y + z). x, y and z are added along the features; joined along the
    sequence under a causal mask, z would come after every y and change nothing. The network is `config.layers` layers
    and an RMSNorm, without which the states would grow by a constant factor a loop.

    Reference:
        Jolicoeur-Martineau, Less is More: Recursive Reasoning with Tiny Networks, 2025 (there without a causal mask).
    """

    def __init__(self, config: TrmConfig) -> None:
        super().__init__()
        self.inner = config.inner
        self.head_width = config.width // config.heads
        self.y0_D = nn.Parameter(torch.randn(config.width))
        self.z0_D = nn.Parameter(torch.randn(config.width))
        self.layers = nn.ModuleList(
            TRMLayer(config.width, heads=config.heads, ff_mult=config.ff_mult, glu=config.glu)
            for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.width, eps=EPS)

    def forward(
        self,
        x_BQD: Tensor,
        *,
        mask_B1QK: Tensor,
        positions_BQ: Tensor,
        cache: KeyValueCache | None,
        first_layer: int,
        steps: int,
        has_halted: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Return y (B, Q, D) after each loop, and the number of loops (B, Q) that each token took.

        A halted token keeps its y and z. Tokens after it attend to the keys and values of this fixed state in all
        later virtual layers, so a token's result is the same whether the others come with it or from the cache.

        Args:
            x_BQD: Input.
            mask_B1QK: True where a token may attend; each attends to itself at least.
            positions_BQ: Positions of the tokens.
            cache: Keys and values of earlier tokens, written with the same `steps`.
            first_layer: Index of the first virtual layer in the cache.
            steps: Most loops.
            has_halted: From y (B, Q, D) to True (B, Q) where a token stops; None: every token takes all loops. The
                list is shorter than `steps` if all tokens stop early.
        """
        layers = cast(Iterable[TRMLayer], self.layers)
        rotary = compute_rotary(positions_BQ, self.head_width, x_BQD.dtype)
        virtual_layers = count(first_layer)
        y_BQD, z_BQD = self.y0_D.expand_as(x_BQD), self.z0_D.expand_as(x_BQD)
        active_BQ = torch.ones_like(positions_BQ, dtype=torch.bool)
        loops_BQ = torch.zeros_like(positions_BQ)

        def update(state_BQD: Tensor, input_BQD: Tensor) -> Tensor:
            active = None if has_halted is None else active_BQ
            new_BQD = input_BQD
            for layer in layers:
                new_BQD = layer(
                    new_BQD,
                    mask_B1QK=mask_B1QK,
                    rotary=rotary,
                    cache=cache,
                    layer=next(virtual_layers),
                    active_BQ=active,
                )
            new_BQD = self.norm(new_BQD)
            return new_BQD if active is None else torch.where(active[..., None], new_BQD, state_BQD)

        answers = []
        for step in range(steps):
            for _ in range(self.inner):
                z_BQD = update(z_BQD, z_BQD + y_BQD + x_BQD)
            y_BQD = update(y_BQD, y_BQD + z_BQD)
            answers.append(y_BQD)
            loops_BQ = loops_BQ + active_BQ
            if has_halted is not None:
                active_BQ = active_BQ & ~has_halted(y_BQD)
                if not active_BQ.any():
                    if cache is not None:
                        of_z = [layer.keys_values(z_BQD + y_BQD + x_BQD, rotary) for layer in layers]
                        of_y = [layer.keys_values(y_BQD + z_BQD, rotary) for layer in layers]
                        for keys, values in (of_z * self.inner + of_y) * (steps - step - 1):
                            cache.update(keys, values, next(virtual_layers))
                    break
        return answers, loops_BQ


class HaltingHead(nn.Module):
    """From a hidden state to the logit of the probability that the token predicted from it is right.

    It begins at a probability below 1 %, so that an untrained head never stops a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -5.0)

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (...) of hidden states (..., width)."""
        normed = rms_norm(states.to(self.linear.weight.dtype), states.shape[-1:], eps=EPS)
        return self.linear(normed).squeeze(-1)


class LatentRecursion(nn.Module):
    """Recursive refinement of a language model's last hidden states h, before its head: h + g · up(y).

    x = down(norm(h)) is the input of the loops. The gate g is a vector that starts at zero, so that an untrained
    recursion gives h itself, bit for bit.

    Args:
        hidden: E.
        config: Sizes; `steps` is the number of loops unless a call gives another.
    """

    def __init__(self, hidden: int, config: TrmConfig) -> None:
        super().__init__()
        self.steps = config.steps
        self.norm = nn.RMSNorm(hidden, eps=EPS)
        self.down = nn.Linear(hidden, config.width, bias=False)
        self.loops = LatentLoops(config)
        self.up = nn.Linear(config.width, hidden, bias=False)
        self.gate_E = nn.Parameter(torch.zeros(hidden))
        self.halting = HaltingHead(hidden)

    def forward(
        self,
        hidden_BQE: Tensor,
        *,
        mask_B1QK: Tensor,
        positions_BQ: Tensor,
        cache: KeyValueCache | None = None,
        first_layer: int = 0,
        steps: int | None = None,
    ) -> list[Tensor]:
        """Return the hidden states (B, Q, E) after 0, 1, … `steps` loops, in the dtype of h; the first is h itself.

        Args:
            hidden_BQE: h.
            mask_B1QK: True where a token may attend; each attends to itself at least.
            positions_BQ: Positions of the tokens.
            cache: Keys and values of earlier tokens, written with the same `steps`.
            first_layer: Index of the first virtual layer in the cache: the number of layers of the language model.
            steps: Loops, more or fewer than in training; None: those of the settings.
        """
        steps = self.steps if steps is None else steps
        if steps == 0:
            return [hidden_BQE]
        answers, _ = self.loops(
            self._input(hidden_BQE),
            mask_B1QK=mask_B1QK,
            positions_BQ=positions_BQ,
            cache=cache,
            first_layer=first_layer,
            steps=steps,
        )
        return [hidden_BQE, *(self._refined(hidden_BQE, y_BQD) for y_BQD in answers)]

    def final_state(
        self,
        hidden_BQE: Tensor,
        *,
        mask_B1QK: Tensor,
        positions_BQ: Tensor,
        halt: HaltPolicy,
        cache: KeyValueCache | None = None,
        first_layer: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return the hidden states (B, Q, E) from which to predict, and the loops (B, Q) that each token took.

        The arguments are those of `forward`, with `halt` instead of `steps`; all calls on a cache share one policy.
        """
        answers, loops_BQ = self.loops(
            self._input(hidden_BQE),
            mask_B1QK=mask_B1QK,
            positions_BQ=positions_BQ,
            cache=cache,
            first_layer=first_layer,
            steps=halt.steps,
            has_halted=halting_test(self.halting, halt, read=lambda y_BQD: self._refined(hidden_BQE, y_BQD)),
        )
        return self._refined(hidden_BQE, answers[-1]) if answers else hidden_BQE, loops_BQ

    def halt_logits(self, states: Tensor) -> Tensor:
        """Return logits (...) of the probability that the tokens predicted from states (..., E) are right."""
        return self.halting(states)

    def _input(self, hidden_BQE: Tensor) -> Tensor:
        return self.down(self.norm(hidden_BQE.to(self.gate_E.dtype)))

    def _refined(self, hidden_BQE: Tensor, y_BQD: Tensor) -> Tensor:
        return (hidden_BQE + self.gate_E * self.up(y_BQD)).to(hidden_BQE.dtype)


def feed_forward_width(width: int, ff_mult: float) -> int:
    """Return the width inside a gated feed-forward layer."""
    return round(width * ff_mult)


def halting_test(
    head: HaltingHead, halt: HaltPolicy, read: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor] | None:
    """Return the test by which `LatentLoops` stops tokens; None if they never stop.

    Args:
        head: From hidden states to logits.
        halt: The policy.
        read: From y (B, Q, D) to the hidden states that `head` takes.
    """
    threshold = halt.threshold
    if threshold is None:
        return None
    return lambda y_BQD: head(read(y_BQD)).sigmoid() >= threshold


def supervise(losses: Sequence[Tensor], kind: Literal["last", "all", "monotone"]) -> Tensor:
    """Return the training loss (a scalar) of the losses after each loop.

    - `last`: the loss after the last loop.
    - `all`: their mean.
    - `monotone`: `all`, plus the *sum* over the loops of relu(loss - loss of the loop before), in which the earlier
      loss gets no gradient. For losses per token the relu is per token, and the result the mean over the tokens.

    Args:
        losses: Of the same shape each. Begin with the loss of loop 0, the language model alone, if it should count.
        kind: `trm.supervise`.
    """
    losses_T = torch.stack(list(losses))
    if kind == "last":
        return losses_T[-1].mean()
    loss = losses_T.mean()
    if kind == "monotone":
        loss = loss + relu(losses_T[1:] - losses_T[:-1].detach()).sum(dim=0).mean()
    return loss
