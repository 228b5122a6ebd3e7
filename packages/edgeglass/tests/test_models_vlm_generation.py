"""Answers from kept keys and values: the tokens and logits of reading everything anew, prefix reuse included."""

import pytest
import torch
import toy_decoders
from test_models_vlm_sequences import KINDS
from toy_decoders import QUESTIONS, build_toy, draw_images, make_layout

from edgeglass.models.vlm.generation import Reading, collect, generate, pick_tokens, read
from edgeglass.models.vlm.sequences import pad_conversations
from edgeglass.models.vlm.trm import HaltPolicy

LENGTH = 6
NEW = 9
NO_STOP = (10_000,)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return toy_decoders.load_toy(tmp_path_factory.mktemp("toy") / "language")


def encode(language, kind="plain"):
    return [make_layout(language, kind).encode_question([], question, image=True) for question in QUESTIONS]


@torch.no_grad()
def answer_anew(model, prompt, image, *, halt=None, count=NEW):
    """Greedy decoding that reads everything again for every token: the tokens, and the logits of each."""
    rows = pad_conversations([prompt], [0], [LENGTH])
    embeds = model.embed(rows, image)
    tokens, logits = [], []
    for _ in range(count):
        length = embeds.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        state, _ = model.final_state(embeds, mask_R1TK=mask, positions_RT=torch.arange(length)[None], halt=halt)
        logits.append(model.decoder.logits(state[:, -1])[0])
        tokens.append(int(logits[-1].argmax()))
        embeds = torch.cat((embeds, model.decoder.embed(torch.tensor([tokens[-1:]]))), dim=1)
    return tokens, torch.stack(logits)


@torch.no_grad()
def answer_cached(model, reading, embeds, valid, *, halt=None):
    """Greedy decoding from the cache: the tokens, and the logits of each, by sequence."""
    tokens, logits = [], []
    for _ in range(NEW):
        state = read(model, reading, embeds, valid, halt=halt)[:, -1]
        logits.append(model.decoder.logits(state))
        tokens.append(logits[-1].argmax(dim=-1))
        embeds, valid = model.decoder.embed(tokens[-1][:, None]), torch.ones(len(state), 1, dtype=torch.bool)
    return torch.stack(tokens, dim=1).tolist(), torch.stack(logits, dim=1)


def embed_texts(model, prompts):
    longest = max(len(prompt.ids) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt.ids)) + list(prompt.ids) for prompt in prompts])
    lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
    return model.decoder.embed(ids), torch.arange(longest) >= longest - lengths[:, None]


HALTS = {"as trained": None, "one loop more": HaltPolicy(3), "threshold": HaltPolicy(3, threshold=0.4)}


@pytest.mark.parametrize("halt", HALTS)
@pytest.mark.parametrize("text", ["plain", "chat"])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_answers_are_those_of_reading_everything_anew(kind, text, halt, language):
    model = build_toy(kind, language, lora=False)
    if model.halting is not None:
        torch.nn.init.normal_(model.halting.halting.linear.weight)
        torch.nn.init.zeros_(model.halting.halting.linear.bias)
    image, prompts = draw_images(LENGTH), encode(language, text)
    policy = HALTS[halt]
    expected = [answer_anew(model, prompt, image, halt=policy) for prompt in prompts]

    # a batch padded on the left, each with the image
    rows = pad_conversations(prompts, [0] * 4, [LENGTH], side="left")
    with torch.no_grad():
        embeds = model.embed(rows, image)
    batched = answer_cached(model, Reading.start(4, device=embeds.device), embeds, rows.valid(), halt=policy)

    # the image read once, for four questions
    before = torch.tensor([prompts[0].before], dtype=torch.long)
    with torch.no_grad():
        head = torch.cat((model.decoder.embed(before), model.project(image)), dim=1)
        reading = Reading.start(1, device=head.device)
        read(model, reading, head, torch.ones(head.shape[:2], dtype=torch.bool), halt=policy)
        embeds, valid = embed_texts(model, prompts)
    reused = answer_cached(model, reading.repeat(4), embeds, valid, halt=policy)

    for tokens, logits in (batched, reused):
        assert tokens == [one for one, _ in expected]
        torch.testing.assert_close(logits, torch.stack([one for _, one in expected]), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["qwen+trm", "trm"])
def test_halting_stops_early_and_keeps_the_tokens_that_were_emitted(kind, language):
    model = build_toy(kind, language, lora=False)
    linear = model.halting.halting.linear
    linear.weight.data = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(0))
    rows = pad_conversations(encode(language), [0] * 4, [LENGTH])
    with torch.no_grad():
        embeds = model.embed(rows, draw_images(LENGTH))
        given = {"mask_R1TK": rows.mask(), "positions_RT": rows.positions_RT}
        first = model.states(embeds, steps=1, **given)[-1]
        linear.bias.zero_()
        linear.bias.sub_(model.halting.halt_logits(first).median())  # half of the tokens stop after their first loop
        _, loops = model.final_state(embeds, halt=HaltPolicy(6, threshold=0.5), **given)
        _, all_loops = model.final_state(embeds, halt=HaltPolicy(6), **given)
    valid = rows.valid()
    assert loops[valid].min() < 6
    assert len(loops[valid].unique()) > 1
    assert (all_loops == 6).all()
    prompt, image = encode(language)[0], draw_images(LENGTH)
    policy = HaltPolicy(6, threshold=0.5)
    whole, _ = answer_anew(model, prompt, image, halt=policy, count=8)
    for count in (1, 4):
        assert answer_anew(model, prompt, image, halt=policy, count=count)[0] == whole[:count]


def test_no_loops_at_run_time_are_the_language_model(language):
    plain, refined = build_toy("qwen", language, lora=False), build_toy("qwen+trm", language, lora=False)
    refined.vision_proj.load_state_dict(plain.vision_proj.state_dict())
    prompt, image = encode(language)[2], draw_images(LENGTH)
    _, expected = answer_anew(plain, prompt, image)
    _, found = answer_anew(refined, prompt, image, halt=HaltPolicy(0))
    _, looped = answer_anew(refined, prompt, image)
    assert torch.equal(found, expected)
    assert not torch.allclose(looped, expected, atol=1e-3)


def test_a_closed_gate_is_the_language_model_bit_for_bit(language):
    plain, refined = build_toy("qwen", language, lora=False), build_toy("qwen+trm", language, lora=False)
    refined.vision_proj.load_state_dict(plain.vision_proj.state_dict())
    torch.nn.init.zeros_(refined.recursion.gate_E)
    prompt, image = encode(language)[2], draw_images(LENGTH)
    assert torch.equal(answer_anew(refined, prompt, image)[1], answer_anew(plain, prompt, image)[1])


def test_answers_end_at_a_stop_token_that_is_not_part_of_them(language):
    model, image, prompts = build_toy("qwen", language, lora=False), draw_images(LENGTH), encode(language)
    rows = pad_conversations(prompts, [0] * 4, [LENGTH], side="left")
    with torch.no_grad():
        embeds = model.embed(rows, image)
    free = answer(model, embeds, rows, stop_ids=NO_STOP)
    stop = free[0][3]
    stopped = answer(model, embeds, rows, stop_ids=(stop,))
    for whole, part in zip(free, stopped, strict=True):
        assert part == (whole[: whole.index(stop)] if stop in whole else whole)
    assert len(stopped[0]) < NEW


def answer(model, embeds, rows, **settings):
    reading = Reading.start(len(embeds), device=embeds.device)
    return collect(generate(model, reading, embeds, rows.valid(), max_new_tokens=NEW, **settings), len(embeds))


def test_draws_follow_the_temperature_and_the_generator():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(3000, 1)
    drawn = pick_tokens(logits, temperature=0.5, generator=torch.Generator().manual_seed(0))
    again = pick_tokens(logits, temperature=0.5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    shares = torch.bincount(drawn, minlength=3) / 3000
    torch.testing.assert_close(shares, (logits[0] / 0.5).softmax(dim=-1), atol=0.03, rtol=0)
    assert pick_tokens(logits, temperature=0.0, generator=None).unique().tolist() == [2]
