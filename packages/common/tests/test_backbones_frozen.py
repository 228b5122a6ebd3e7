"""Freezing that holds, and fingerprints that tell weights apart."""

import copy
import pickle

import torch
from torch import nn

from clip_common.backbones import behaviour, fingerprint, freeze, is_frozen


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_a_frozen_module_stays_in_eval_mode_under_train():
    model = nn.Sequential(freeze(network()), nn.Linear(4, 2))
    model.train()
    assert model.training
    assert not any(module.training for module in model[0].modules())
    assert model[1].training
    before = model[0][1].running_mean.clone()
    model(torch.randn(8, 3)).sum().backward()
    assert torch.equal(model[0][1].running_mean, before)
    assert all(parameter.grad is None for parameter in model[0].parameters())
    assert is_frozen(model[0])
    assert not is_frozen(model)


def test_copies_stay_frozen_and_are_separate():
    frozen = freeze(network())
    for twin in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        assert twin.train() is twin
        assert not twin.training
        assert twin[0].weight is not frozen[0].weight


def test_freezing_does_not_change_the_weights_or_their_names():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    freeze(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_equal_weights_have_equal_fingerprints_whatever_their_order():
    model = network()
    state = model.state_dict()
    assert fingerprint(model) == fingerprint(dict(reversed(state.items()))) == fingerprint(network())
    assert len(fingerprint(model)) == 64


def test_any_change_changes_the_fingerprint():
    state = network().state_dict()
    reference = fingerprint(state)
    flipped = state | {"0.weight": state["0.weight"].clone()}
    flipped["0.weight"][0, 0] = torch.nextafter(flipped["0.weight"][0, 0], torch.tensor(9.0))
    renamed = {name.replace("0.", "1."): tensor for name, tensor in state.items()}
    reshaped = state | {"0.weight": state["0.weight"].reshape(3, 4)}
    halved = state | {"0.weight": state["0.weight"].half()}
    assert reference not in {fingerprint(other) for other in (flipped, renamed, reshaped, halved)}


def test_every_dtype_and_layout_has_a_fingerprint():
    value = torch.arange(12.0).reshape(3, 4)
    state = {"bf16": value.bfloat16(), "scalar": torch.tensor(1.5), "long": torch.arange(3), "bool": value > 3}
    assert fingerprint(state | {"x": value.T}) == fingerprint(state | {"x": value.T.contiguous()})


class Masked(nn.Module):
    """A mask that no checkpoint holds."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((2, 2), value), persistent=False)


def test_equal_weights_that_yield_something_else_behave_differently():
    def attention(heads):
        torch.manual_seed(0)
        return nn.MultiheadAttention(8, heads)

    pairs = [
        (nn.Sequential(nn.Linear(2, 2), nn.GELU()), nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
        (attention(2), attention(4)),
        (nn.LayerNorm(3, eps=1e-5), nn.LayerNorm(3, eps=1e-6)),
        (Masked(0.0), Masked(1.0)),
    ]
    pairs[0][1].load_state_dict(pairs[0][0].state_dict())
    for one, other in pairs:
        assert fingerprint(one) == fingerprint(other)
        assert behaviour(one) != behaviour(other), one


def test_behaviour_is_that_of_copies_and_changes_with_the_weights():
    model = network().train()
    before = behaviour(model)
    assert before == behaviour(freeze(copy.deepcopy(model)))
    with torch.no_grad():
        model[1].running_mean.add_(1)
    assert behaviour(model) != before
