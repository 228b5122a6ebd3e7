"""Decoding with a cache, with and without halting, against the whole sequence at once; for both recursive models."""

import pytest
import torch
import toy_trm
from torch import Tensor, nn

from clip_common.backbones.language import make_cache
from edgeglass.models.vlm.trm import HaltPolicy, LatentRecursion
from edgeglass.models.vlm.trm_decoder import TRMDecoder

LENGTHS, PROMPT, TOTAL = [5, 3], 5, 12
POLICIES = [HaltPolicy(3), HaltPolicy(5), HaltPolicy(5, 0.5), HaltPolicy(6, 0.6)]


class Speaker(nn.Module):
    """A recursive model as a decoder: a recursion gets an embedding and a head, a decoder has both."""

    def __init__(self, model: LatentRecursion | TRMDecoder) -> None:
        super().__init__()
        self.model = model
        self.embedding = nn.Embedding(toy_trm.VOCABULARY, toy_trm.HIDDEN).double()

    def embed(self, ids_BQ: Tensor) -> Tensor:
        return self.model.embed(ids_BQ) if isinstance(self.model, TRMDecoder) else self.embedding(ids_BQ)

    def final(self, embeds_BQE, halt, rows, cache=None, first=0) -> tuple[Tensor, Tensor, Tensor]:
        """States, loops and logits of the tokens from `first` on, in rows padded on the left."""
        mask_B1QK, positions_BQ = toy_trm.layout(rows, first + embeds_BQE.shape[1])
        options = {} if isinstance(self.model, TRMDecoder) else {"first_layer": 7}
        state_BQE, loops_BQ = self.model.final_state(
            embeds_BQE,
            mask_B1QK=mask_B1QK[:, :, first:],
            positions_BQ=positions_BQ[:, first:],
            halt=halt,
            cache=cache,
            **options,
        )
        weight = self.model.embedding.weight if isinstance(self.model, TRMDecoder) else self.embedding.weight
        return state_BQE, loops_BQ, state_BQE @ weight.T


SPEAKERS = {
    "recursion": lambda **settings: Speaker(toy_trm.recursion(**settings)),
    "decoder": lambda **settings: Speaker(toy_trm.decoder(**settings)),
}


def grown(tokens: int) -> list[int]:
    return [length + tokens - PROMPT for length in LENGTHS]


@pytest.fixture(params=SPEAKERS)
def speaker(request) -> Speaker:
    torch.manual_seed(3)
    return SPEAKERS[request.param]()


@torch.no_grad()
@pytest.mark.parametrize("halt", POLICIES)
def test_cached_decoding_is_the_whole_sequence(speaker, halt):
    """Greedy tokens, states, loops and logits, from unequal prompts, the answer's first token included."""
    ids_BQ = torch.randint(toy_trm.VOCABULARY, (2, PROMPT), generator=torch.Generator().manual_seed(4))
    cache, cached = toy_trm.ListCache(), []
    new_BQ = ids_BQ
    for total in range(PROMPT, TOTAL + 1):
        first = total - new_BQ.shape[1]
        cached.append(speaker.final(speaker.embed(new_BQ), halt, grown(total), cache, first))
        whole = speaker.final(speaker.embed(ids_BQ), halt, grown(total))
        new_BQ = cached[-1][2][:, -1:].argmax(dim=-1)
        assert torch.equal(new_BQ, whole[2][:, -1:].argmax(dim=-1))
        ids_BQ = torch.cat([ids_BQ, new_BQ], dim=1)
    real_BQ = toy_trm.layout(grown(TOTAL), TOTAL)[0][:, 0, -1]
    for steps, full in zip(zip(*cached, strict=True), whole, strict=True):  # states, loops, logits
        torch.testing.assert_close(torch.cat(steps, dim=1)[real_BQ], full[real_BQ], atol=1e-12, rtol=1e-12)
    if halt.threshold is not None:
        loops = whole[1][real_BQ]
        assert loops.min() < loops.max() <= halt.steps
    applications = halt.steps * (2 + 1) * 2
    first_layer = 7 if isinstance(speaker.model, LatentRecursion) else 0
    assert sorted(cache.layers) == list(range(first_layer, first_layer + applications))
    assert {keys.shape[2] for keys, _ in cache.layers.values()} == {TOTAL}


@torch.no_grad()
@pytest.mark.parametrize("halt", POLICIES)
def test_tokens_already_emitted_never_change(speaker, halt):
    ids_BQ = torch.randint(toy_trm.VOCABULARY, (2, TOTAL), generator=torch.Generator().manual_seed(5))
    other_BQ = ids_BQ.clone()
    other_BQ[:, 6:] = (other_BQ[:, 6:] + 1) % toy_trm.VOCABULARY
    rows = [TOTAL, TOTAL - 2]
    one, other = (speaker.final(speaker.embed(ids), halt, rows) for ids in (ids_BQ, other_BQ))
    assert all(torch.equal(a[:, :6], b[:, :6]) for a, b in zip(one, other, strict=True))
    assert not torch.equal(one[2], other[2])


@torch.no_grad()
def test_halted_tokens_keep_the_state_of_their_loop(speaker):
    """A token that stops at loop t predicts from its state after t loops in a run that lets tokens of t loops stop."""
    ids_BQ = torch.randint(toy_trm.VOCABULARY, (2, TOTAL), generator=torch.Generator().manual_seed(5))
    embeds = speaker.embed(ids_BQ)
    final, loops_BQ, _ = speaker.final(embeds, HaltPolicy(6, 0.5), [TOTAL, TOTAL])
    assert loops_BQ.unique().numel() > 1
    for steps in range(1, 7):
        shorter, _, _ = speaker.final(embeds, HaltPolicy(steps, 0.5), [TOTAL, TOTAL])
        stopped_BQ = loops_BQ <= steps
        assert torch.equal(shorter[stopped_BQ], final[stopped_BQ])
        logits_BQ = speaker.model.halt_logits(shorter)
        assert (logits_BQ[loops_BQ == steps] >= 0).all() or steps == 6
        assert (logits_BQ[loops_BQ > steps] < 0).all()


@torch.no_grad()
def test_halting_stops_early_and_fills_the_cache_with_keys_and_values(speaker):
    applied = []
    for layer in speaker.model.loops.layers:
        layer.register_forward_hook(lambda *_: applied.append(1))
    embeds, ways = speaker.embed(torch.tensor([[1, 2, 3]])), {}
    for name, halt in {"all": HaltPolicy(6), "one": HaltPolicy(6, 0.0)}.items():
        applied.clear()
        cache = toy_trm.ListCache()
        _, loops_BQ, _ = speaker.final(embeds, halt, [3], cache)
        ways[name] = len(applied), loops_BQ.unique().item(), len(cache.layers)
    assert ways == {"all": (36, 6, 36), "one": (6, 1, 36)}


@torch.no_grad()
@pytest.mark.parametrize("halt", [HaltPolicy(4), HaltPolicy(4, 0.5), HaltPolicy(6, 0.6)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_token_by_token_is_the_whole_sequence(speaker, halt, dtype, tolerance):
    """With the cache of transformers, which keeps recursion and language model in one: here the recursion alone."""
    speaker.to(dtype)
    ids_BQ = torch.randint(toy_trm.VOCABULARY, (1, TOTAL), generator=torch.Generator().manual_seed(6))
    whole, cache = speaker.final(speaker.embed(ids_BQ), halt, [TOTAL]), make_cache()
    if isinstance(speaker.model, LatentRecursion):
        for layer in range(7):  # those of the language model
            cache.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), layer)
    steps = [speaker.final(speaker.embed(ids_BQ[:, t : t + 1]), halt, [t + 1], cache, first=t) for t in range(TOTAL)]
    for part, full in zip(zip(*steps, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(part, dim=1), full, atol=tolerance, rtol=tolerance)
    if halt.threshold is not None:  # a step ends at its token's loop: the cache holds what later tokens need
        assert whole[1].min() < whole[1].max()


@torch.no_grad()
def test_without_halting_the_final_state_is_the_last_of_the_list():
    model, hidden_BQE = toy_trm.recursion(), toy_trm.inputs(toy_trm.HIDDEN)
    mask_B1QK, positions_BQ = toy_trm.layout([7, 4], 7)
    places = {"mask_B1QK": mask_B1QK, "positions_BQ": positions_BQ}
    final, loops_BQ = model.final_state(hidden_BQE, halt=HaltPolicy(3), **places)
    assert torch.equal(final, model(hidden_BQE, **places)[-1])
    assert (loops_BQ == 3).all()
    decoder, embeds_BQD = toy_trm.decoder(), toy_trm.inputs(8)
    final, loops_BQ = decoder.final_state(embeds_BQD, halt=HaltPolicy(3), **places)
    states = decoder.states(embeds_BQD, **places)
    assert len(states) == 3
    assert torch.equal(final, states[-1])
    assert (loops_BQ == 3).all()
    assert len(decoder.states(embeds_BQD, steps=5, **places)) == 5


@torch.no_grad()
def test_an_untrained_halting_head_stops_nothing():
    torch.manual_seed(0)
    decoder = TRMDecoder(toy_trm.VOCABULARY, toy_trm.config(), 32)
    mask_B1QK, positions_BQ = toy_trm.layout([7, 7], 7)
    embeds_BQD = toy_trm.inputs(8).float()
    places = {"mask_B1QK": mask_B1QK, "positions_BQ": positions_BQ}
    _, loops_BQ = decoder.final_state(embeds_BQD, halt=HaltPolicy(3, 0.5), **places)
    assert (loops_BQ == 3).all()


def test_the_prefix_conditions_the_text():
    decoder = toy_trm.decoder()
    mask_B1QK, positions_BQ = toy_trm.layout([9], 9)
    text_BQD = decoder.embed(torch.tensor([[1, 2, 3, 4]]))
    logits = []
    for seed in (1, 2):
        embeds_BQD = torch.cat([toy_trm.inputs(decoder.width, (1, 5), seed), text_BQD], dim=1)
        states = decoder.states(embeds_BQD, mask_B1QK=mask_B1QK, positions_BQ=positions_BQ)
        logits.append(decoder.logits(states[-1]))
    assert logits[0].shape == (1, 9, toy_trm.VOCABULARY)
    assert not torch.allclose(logits[0][:, -1], logits[1][:, -1])


def test_head_and_embedding_are_one():
    decoder = toy_trm.decoder()
    states = torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(decoder.logits(states), decoder.embedding.weight.T)
    shapes = [tuple(parameter.shape) for parameter in decoder.parameters()]
    assert shapes.count((toy_trm.VOCABULARY, 8)) == 1


def test_a_decoder_without_loops_is_refused():
    mask_B1QK, positions_BQ = toy_trm.layout([7, 7], 7)
    with pytest.raises(ValueError, match=r"steps=0.*give 1 or more"):
        toy_trm.decoder().states(toy_trm.inputs(8), mask_B1QK=mask_B1QK, positions_BQ=positions_BQ, steps=0)
