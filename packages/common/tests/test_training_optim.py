"""AdamW and its schedule."""

import math

import pytest
import torch
from torch import nn

from clip_common.config import OptimConfig
from clip_common.training import build_optimizer, warmup_cosine


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(1, 1))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_only_weight_matrices_decay_and_frozen_ones_are_left_out():
    model = Model()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: decay.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert named == {
        "linear.weight": 0.2,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "logit_scale": 0.0,
        "logit_bias": 0.0,
        "frozen.weight": None,
        "frozen.bias": None,
    }
    assert all((g["lr"], g["betas"], g["eps"]) == (0.1, (0.8, 0.9), 1e-6) for g in optimizer.param_groups)


def test_parts_have_learning_rates_of_their_own():
    model = Model()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.2), rates={"linear.": 0.01})
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    own = {name: rate[id(parameter)] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, value in own.items() if value == 0.01} == {"linear.weight", "linear.bias"}
    assert set(own.values()) == {0.01, 0.1}
    schedule = warmup_cosine(optimizer, warmup_steps=2, total_steps=4)
    assert sorted(schedule.get_last_lr()) == pytest.approx(sorted(g["initial_lr"] / 2 for g in optimizer.param_groups))


def test_named_parameters_may_be_given_and_none_is_an_error():
    model = Model()
    assert len(build_optimizer([("linear.weight", model.linear.weight)], OptimConfig()).param_groups) == 1
    with pytest.raises(ValueError, match="every parameter is frozen"):
        build_optimizer(model.frozen, OptimConfig())


def test_the_learning_rate_warms_up_and_follows_a_cosine_to_zero():
    optimizer = build_optimizer(Model(), OptimConfig(lr=2.0))
    schedule = warmup_cosine(optimizer, warmup_steps=4, total_steps=12)
    seen = []
    for _ in range(13):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    cosine = [1 + math.cos(math.pi * step / 8) for step in range(9)]
    assert seen == pytest.approx([0.5, 1.0, 1.5, 2.0, *cosine])


def test_a_schedule_without_warmup_begins_at_its_peak():
    optimizer = build_optimizer(Model(), OptimConfig(lr=2.0))
    warmup_cosine(optimizer, warmup_steps=0, total_steps=1)
    assert optimizer.param_groups[0]["lr"] == 2.0
