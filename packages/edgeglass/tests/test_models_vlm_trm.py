"""The recursive network against a reference with its attention in sight, and the recursion on hidden states."""

from itertools import pairwise

import pytest
import torch
import toy_trm
from torch.nn.functional import gelu, rms_norm, silu

from clip_common.config import ConfigError
from edgeglass.config.vlm import TrmConfig
from edgeglass.models.vlm.rotary import compute_rotary, rotate
from edgeglass.models.vlm.trm import HaltPolicy, LatentRecursion, TRMLayer, supervise

LENGTHS = [7, 4]
GATES = {"swiglu": silu, "geglu": gelu, "reglu": torch.relu}


def turn(x_Qd: torch.Tensor, positions_Q: torch.Tensor) -> torch.Tensor:
    """Rotary positions as complex numbers: the pair (i, i + d/2) times exp(i · angle)."""
    half = x_Qd.shape[1] // 2
    angles = positions_Q[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x_Qd[:, :half], x_Qd[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=1)


def layer_reference(layer: TRMLayer, x_QD, mask_QQ, positions_Q, glu: str) -> torch.Tensor:
    """One layer on one sequence, head by head, from the weights by name."""
    w, width = dict(layer.named_parameters()), x_QD.shape[1]
    normed = rms_norm(x_QD, (width,), w["norm_attention.weight"], 1e-6)
    q = normed @ w["to_query.weight"].T
    k, v = (normed @ w["to_key_value.weight"].T).chunk(2, dim=1)
    heads, d = [], width // layer.heads
    for part in (slice(h * d, (h + 1) * d) for h in range(layer.heads)):
        scores = turn(q[:, part], positions_Q) @ turn(k[:, part], positions_Q).T / d**0.5
        heads.append(scores.masked_fill(~mask_QQ, -torch.inf).softmax(dim=1) @ v[:, part])
    x_QD = x_QD + torch.cat(heads, dim=1) @ w["to_out.weight"].T
    gate, content = (rms_norm(x_QD, (width,), w["norm_feed_forward.weight"], 1e-6) @ w["to_gated.weight"].T).chunk(2, 1)
    return x_QD + (GATES[glu](gate) * content) @ w["from_gated.weight"].T


def reference(model: LatentRecursion, h_QE, mask_QQ, positions_Q, settings: TrmConfig) -> list[torch.Tensor]:
    """The recursion of one sequence, as the formulas say."""

    def net(x_QD):
        for layer in model.loops.layers:
            x_QD = layer_reference(layer, x_QD, mask_QQ, positions_Q, settings.glu)
        return rms_norm(x_QD, (settings.width,), model.loops.norm.weight, 1e-6)

    x = rms_norm(h_QE, h_QE.shape[1:], model.norm.weight, 1e-6) @ model.down.weight.T
    y, z, states = model.loops.y0_D.expand_as(x), model.loops.z0_D.expand_as(x), [h_QE]
    for _ in range(settings.steps):
        for _ in range(settings.inner):
            z = net(z + y + x)
        y = net(y + z)
        states.append(h_QE + model.gate_E * (y @ model.up.weight.T))
    return states


def run(model: LatentRecursion, hidden_BQE=None, *, lengths=LENGTHS, **options) -> list[torch.Tensor]:
    mask_B1QK, positions_BQ = toy_trm.layout(lengths, max(lengths))
    hidden_BQE = toy_trm.inputs(toy_trm.HIDDEN) if hidden_BQE is None else hidden_BQE
    return model(hidden_BQE, mask_B1QK=mask_B1QK, positions_BQ=positions_BQ, **options)


@pytest.mark.parametrize("glu", ["swiglu", "geglu", "reglu"])
def test_it_is_the_reference(glu):
    model, hidden_BQE = toy_trm.recursion(glu=glu), toy_trm.inputs(toy_trm.HIDDEN)
    mask_B1QK, positions_BQ = toy_trm.layout(LENGTHS, 7)
    states = run(model, hidden_BQE)
    assert len(states) == 4
    for row in range(2):
        expected = reference(model, hidden_BQE[row], mask_B1QK[row, 0], positions_BQ[row], toy_trm.config(glu=glu))
        for state, wanted in zip(states, expected, strict=True):
            torch.testing.assert_close(state[row], wanted, atol=1e-12, rtol=1e-12)


def test_rotary_by_hand():
    """Width 2 has one pair, which turns by one radian a position."""
    rotary = compute_rotary(torch.tensor([[0, 1]]), 2, torch.float64)
    turned = rotate(torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]], dtype=torch.float64), rotary)
    cos, sin = torch.tensor(1.0, dtype=torch.float64).cos(), torch.tensor(1.0, dtype=torch.float64).sin()
    torch.testing.assert_close(turned[0, 0], torch.stack([torch.tensor([1.0, 0.0]).double(), torch.stack([cos, sin])]))


def test_rotary_tells_far_positions_apart_in_bfloat16():
    cos, _ = compute_rotary(torch.tensor([[256, 257]]), 4, torch.bfloat16)
    assert cos.dtype == torch.float32
    assert not torch.equal(cos[:, :, 0], cos[:, :, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_an_untrained_recursion_is_the_base_bit_for_bit(dtype, trained_in, autocast):
    torch.manual_seed(0)
    model = LatentRecursion(toy_trm.HIDDEN, toy_trm.config()).to(trained_in)
    hidden_BQE = (100 * toy_trm.inputs(toy_trm.HIDDEN)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        states = run(model, hidden_BQE)
        assert len(states) == 4
        assert all(state.dtype == dtype and torch.equal(state, hidden_BQE) for state in states)
        model.gate_E.data.fill_(1)
        assert not any(torch.equal(state, hidden_BQE) for state in run(model, hidden_BQE)[1:])


def test_no_steps_are_the_base_and_steps_may_be_other_than_trained():
    model, hidden_BQE = toy_trm.recursion(), toy_trm.inputs(toy_trm.HIDDEN)
    states = run(model, hidden_BQE, steps=0)
    assert len(states) == 1
    assert states[0] is hidden_BQE
    few, usual, many = (run(model, hidden_BQE, steps=steps) for steps in (1, None, 8))
    assert [len(states) for states in (few, usual, many)] == [2, 4, 9]
    assert all(torch.equal(one, other) for one, other in zip(usual, many, strict=False))
    assert all(not torch.equal(one, other) for one, other in pairwise(many))
    mask_B1QK, positions_BQ = toy_trm.layout(LENGTHS, 7)
    base, loops_BQ = model.final_state(
        hidden_BQE, mask_B1QK=mask_B1QK, positions_BQ=positions_BQ, halt=HaltPolicy(0, 0.5)
    )
    assert base is hidden_BQE
    assert not loops_BQ.any()


def test_inner_updates_and_gates_change_the_result():
    results = [run(toy_trm.recursion(inner=inner))[-1] for inner in (1, 2, 3)]
    results += [run(toy_trm.recursion(glu=glu))[-1] for glu in ("geglu", "reglu")]
    assert all(not torch.allclose(a, b) for i, a in enumerate(results) for b in results[:i])


def test_states_keep_their_size_in_many_loops():
    states = run(toy_trm.recursion(), steps=40)
    moved = [(state - states[0]).square().mean().item() for state in states[1:]]
    assert max(moved) < 10 * min(moved)


@pytest.mark.parametrize("make", [toy_trm.recursion, toy_trm.decoder])
def test_every_parameter_gets_a_gradient(make):
    """Of both start states above all, that of z too: joined along the sequence it would be exactly zero."""
    model = make()
    if isinstance(model, LatentRecursion):
        last = run(model)[-1]
    else:
        mask_B1QK, positions_BQ = toy_trm.layout(LENGTHS, 7)
        embeds_BQD = model.embed(torch.arange(14).view(2, 7) % toy_trm.VOCABULARY)
        last = model.states(embeds_BQD, mask_B1QK=mask_B1QK, positions_BQ=positions_BQ)[-1]
    gradients = dict(model.named_parameters())
    (last.sin().sum() + model.halt_logits(last).sin().sum()).backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in gradients.values())
    assert model.loops.y0_D.grad.abs().min() > 0
    assert model.loops.z0_D.grad.abs().min() > 0


def test_the_gate_learns_first():
    torch.manual_seed(0)
    model = LatentRecursion(toy_trm.HIDDEN, toy_trm.config()).double()
    run(model)[-1].sin().sum().backward()
    assert model.gate_E.grad.abs().min() > 0
    assert not model.up.weight.grad.any()


@pytest.mark.parametrize("token", [0, 3, 5])
def test_later_tokens_and_padding_change_nothing(token):
    model, hidden_BQE = toy_trm.recursion(), toy_trm.inputs(toy_trm.HIDDEN)
    changed_BQE = hidden_BQE.clone()
    changed_BQE[0, token + 1 :] += 5
    changed_BQE[1, :3] -= 5  # padding of the second row
    for state, other in zip(run(model, hidden_BQE), run(model, changed_BQE), strict=True):
        assert torch.equal(state[0, : token + 1], other[0, : token + 1])
        assert torch.equal(state[1, 3:], other[1, 3:])
    assert not torch.allclose(run(model, hidden_BQE)[-1][0, -1], run(model, changed_BQE)[-1][0, -1])


def test_padding_on_the_left_is_the_row_alone():
    model, hidden_BQE = toy_trm.recursion(), toy_trm.inputs(toy_trm.HIDDEN)
    alone = run(model, hidden_BQE[1:, 3:], lengths=[4])
    for state, other in zip(run(model, hidden_BQE), alone, strict=True):
        torch.testing.assert_close(state[1:, 3:], other, atol=1e-12, rtol=1e-12)


def test_supervise_by_hand():
    """Losses 3, 1, 2: the mean is 2; the rise of the last by 1 is added, and the loss before it gets no gradient."""
    losses = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    expected = {"last": (2.0, [0, 0, 1]), "all": (2.0, [1 / 3] * 3), "monotone": (3.0, [1 / 3, 1 / 3, 4 / 3])}
    for kind, (value, gradient) in expected.items():
        loss = supervise(list(losses), kind)
        assert loss.item() == pytest.approx(value)
        torch.testing.assert_close(torch.autograd.grad(loss, losses)[0], torch.tensor(gradient, dtype=torch.float32))
    assert supervise([torch.tensor(4.0)], "monotone").item() == 4
    per_token = [torch.tensor([1.0, 5.0]), torch.tensor([3.0, 3.0])]  # the means stay; the first token rises by 2
    assert supervise(per_token, "monotone").item() == pytest.approx(3 + 1)


def test_policies_of_the_settings():
    assert HaltPolicy.from_config(TrmConfig(steps=4, max_steps=6)) == HaltPolicy(4)
    assert HaltPolicy.from_config(TrmConfig(steps=4, max_steps=6, halt="steps")) == HaltPolicy(6)
    halting = TrmConfig(steps=4, halt="threshold", threshold=0.7, supervise="all")
    assert HaltPolicy.from_config(halting) == HaltPolicy(4, 0.7)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 10, "heads": 4}, "width=10 over heads=4"),
        ({"width": 9, "heads": 3}, "width=9 over heads=3"),
        ({"inner": 0}, "trm.inner"),
        ({"layers": 0}, "trm.layers"),
        ({"steps": -1}, "trm.steps"),
        ({"max_steps": 0}, "trm.max_steps"),
        ({"ff_mult": 0.0}, "trm.ff_mult"),
        ({"threshold": 1.5}, "trm.threshold"),
    ],
)
def test_bad_sizes_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        TrmConfig(**settings)
