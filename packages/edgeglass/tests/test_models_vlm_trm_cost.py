"""Counts of parameters and operations, by hand and beside torch's counter."""

import pytest
import torch
import toy_trm
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgeglass.models.vlm.trm_cost import (
    count_applications,
    count_decoder_flops,
    count_layer_flops,
    count_parameters,
    count_recursion_flops,
)

LENGTH = 6


def measure(call) -> int:
    """Operations of a call; attention as matrix products, since the fused kernel of the CPU is not counted."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def test_by_hand():
    """Width 8, feed-forward width 12: 4 · 64 + 3 · 96 weights; 5 keys cost 2 · 5 · 8 more; two operations each."""
    settings = toy_trm.config()
    assert count_layer_flops(settings, context=5) == 2 * (256 + 288 + 80)
    assert count_applications(settings) == 3 * 3 * 2
    assert count_applications(settings, steps=0) == 0
    assert count_recursion_flops(settings, 12, 5, steps=0) == 0
    assert count_recursion_flops(settings, 12, 5, steps=1) == 6 * 1248 + 2 * 2 * 96
    assert count_decoder_flops(settings, 11, 5, steps=1) == 6 * 1248 + 2 * 88


def test_parameters_by_hand():
    """A layer has 256 + 288 weights and two norms; the loops two states and a norm; the head of the decoder is tied."""
    loops = 2 * (256 + 288 + 2 * 8) + 2 * 8 + 8
    assert count_parameters(toy_trm.decoder()) == loops + 11 * 8 + 8 + (8 + 1)
    assert count_parameters(toy_trm.recursion()) == loops + 2 * 96 + 12 + 12 + (12 + 1)


@pytest.mark.parametrize(("steps", "inner", "layers", "ff_mult"), [(1, 1, 1, 4.0), (3, 2, 2, 1.5), (5, 3, 1, 2.6)])
def test_counts_are_those_of_torch(steps, inner, layers, ff_mult):
    settings = {"inner": inner, "layers": layers, "ff_mult": ff_mult}
    mask_B1QK, positions_BQ = toy_trm.layout([LENGTH], LENGTH)
    places = {"mask_B1QK": mask_B1QK, "positions_BQ": positions_BQ, "steps": steps}
    recursion, hidden_BQE = toy_trm.recursion(**settings), toy_trm.inputs(toy_trm.HIDDEN, (1, LENGTH))
    unused_readouts = 2 * toy_trm.HIDDEN * 8 * (steps - 1)
    per_token = count_recursion_flops(toy_trm.config(**settings), toy_trm.HIDDEN, LENGTH, steps=steps)
    assert measure(lambda: recursion(hidden_BQE, **places)) == LENGTH * (per_token + unused_readouts)
    decoder, embeds_BQD = toy_trm.decoder(**settings), toy_trm.inputs(8, (1, LENGTH))
    per_token = count_decoder_flops(toy_trm.config(**settings), toy_trm.VOCABULARY, LENGTH, steps=steps)
    assert measure(lambda: decoder.logits(decoder.states(embeds_BQD, **places)[-1])) == LENGTH * per_token
