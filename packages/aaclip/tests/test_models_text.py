"""Learned tokens of prompts: in their places, trained, stored with the adapters, refused where they do not fit."""

import pytest
import torch
from helpers.runs import same, weights

from aaclip.config import AdapterConfig, Config, PromptConfig
from aaclip.detector.detector import Detector
from aaclip.models.backbone import make_model
from aaclip.models.text import TextAdapter
from aaclip.training.experiment import train
from clip_common.config import ConfigError, load_config
from clip_common.tensors import TensorsError

pytestmark = pytest.mark.filterwarnings("ignore:image score not fitted")

TEXTS = ["a photo of a damaged metal nut.", "a nut.", " ".join(["long"] * 40)]
ON = "prompts.learned_tokens=4"


def reference(tower, module, tokens):
    """Every position, one text after the other: start, learned tokens, words, end."""
    text, count = tower.trunk.text, module.tokens.num_embeddings
    found = []
    for ids in tokens:
        end = int(ids.argmax())
        words = text.token_embedding(ids)
        x = torch.cat([words[:1], module.tokens.weight, words[1:]])[: len(ids)] + text.positional_embedding
        x = x[None]
        for number, block in enumerate(text.transformer.resblocks):
            x = block(x, attn_mask=text.attn_mask)
            if number < len(module.layers):
                a = module.layers[number](x)
                a = a * x.norm(dim=-1, keepdim=True) / a.norm(dim=-1, keepdim=True)
                x = 0.1 * a + 0.9 * x
        found.append(module.final(text.ln_final(x)[0, end + count]))
    return torch.stack(found)


@pytest.mark.parametrize("count", [1, 4, 13])
def test_learned_tokens_are_between_the_start_and_the_words(bundle, count):
    module = TextAdapter(bundle.text_tower, AdapterConfig(), learned_tokens=count)
    torch.nn.init.normal_(module.tokens.weight)
    tokens = bundle.tokenizer(TEXTS)
    torch.testing.assert_close(module(bundle.text_tower, tokens), reference(bundle.text_tower, module, tokens))
    # a text alone runs at another length than beside longer ones
    torch.testing.assert_close(module(bundle.text_tower, tokens[1:2]), module(bundle.text_tower, tokens)[1:2])


def test_a_context_holds_the_learned_tokens_too(bundle):
    plain = TextAdapter(bundle.text_tower, AdapterConfig())
    module = TextAdapter(bundle.text_tower, AdapterConfig(), learned_tokens=4)
    tokens = bundle.tokenizer(TEXTS)
    real, more = (one.first_tokens(bundle.text_tower, tokens, padding=False) for one in (plain, module))
    assert len(more) == len(real) + 4 * len(TEXTS)
    assert module.first_tokens(bundle.text_tower, tokens, padding=True).shape == (3 * 77, 16)


def test_without_learned_tokens_nothing_is_there_and_with_them_the_rest_starts_as_without(bundle, config):
    states = []
    for count in (0, 4):
        torch.manual_seed(0)
        states.append(
            make_model(bundle, load_config(Config, overrides=[f"prompts.learned_tokens={count}"])).state_dict()
        )
    assert states[1].keys() - states[0].keys() == {"text_adapter.tokens.weight"}
    assert same(states[0], {name: states[1][name] for name in states[0]})
    assert 0.01 < states[1]["text_adapter.tokens.weight"].std() < 0.03


def test_gradients_reach_the_learned_tokens_and_the_inventory_counts_them(bundle):
    model = make_model(bundle, load_config(Config, overrides=[ON]))
    model.encode_text(TEXTS).square().sum().backward()
    assert model.text_adapter.tokens.weight.grad.abs().min(dim=1).values.gt(0).all()
    assert ("learned tokens", 4 * 16, "stage 1") in model.inventory()


def test_trained_saved_and_loaded_they_score_the_same(trained, parts):
    run = trained(ON)
    names = [name for name in weights(run) if name.startswith("text_adapter.tokens")]
    assert names == ["text_adapter.tokens.weight"]
    start = weights(trained(ON, "stages.text.lr=0"))
    assert not torch.equal(weights(run)[names[0]], start[names[0]])
    file = next((parts / "mug" / "test" / "hole").iterdir())
    one, other = Detector.from_pretrained(run), Detector.from_pretrained(run)
    stored = other.classes.pop("mug")  # computed from its prompts again
    assert one.predict(file, name="mug").score == pytest.approx(other.predict(file, name="mug").score, abs=1e-6)
    torch.testing.assert_close(other.classes["mug"], stored)


def test_texts_attended_to_have_them_in_training_and_for_a_new_name(trained):
    detector = Detector.from_pretrained(trained(ON, "cross_attention.enabled=true"))
    known = detector.contexts.text["mug"]
    del detector.classes["mug"], detector.contexts.text["mug"]
    detector.class_embedding("mug")
    torch.testing.assert_close(detector.contexts.text["mug"], known, atol=2e-3, rtol=0)


def test_a_prompt_that_does_not_fit_is_one_line_and_leaves_nothing(small, trained, tmp_path):
    with pytest.raises(
        ValueError, match=r"prompts.learned_tokens=70: a prompt of \d+ tokens .* do not fit the 77"
    ) as error:
        train(load_config(Config, overrides=[*small, "prompts.learned_tokens=70", "name=full"]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(
        ValueError, match=r"prompts.learned_tokens=4: a prompt of 77 tokens .* shorter prompts or names"
    ):
        Detector.from_pretrained(trained(ON)).class_embedding("nut " * 90)


def test_wrong_numbers_and_learned_tokens_that_nothing_trains_are_one_line(small, trained):
    with pytest.raises(ConfigError, match=r"prompts.learned_tokens: expected a whole number from 0, got -1"):
        PromptConfig(learned_tokens=-1)
    with pytest.raises(ValueError, match=r"prompts.learned_tokens=4 with stages.text.epochs=0: stage 1 trains them"):
        train(load_config(Config, overrides=[*small, ON, "stages.text.epochs=0"]))


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (ON, "prompts.learned_tokens=0"),
        ("prompts.learned_tokens=0", ON),
        ("heads.detection=mean", "heads.detection=levels"),
        ("heads.detection=class_token", "heads.detection=mean"),
        ("heads.activation=leaky", "heads.activation=none"),
    ],
)
def test_a_start_of_another_kind_is_refused_with_what_fits(small, trained, was, now):
    with pytest.raises(TensorsError, match=rf"was trained with {was}, which this configuration changes: set that too"):
        train(load_config(Config, overrides=[*small, now, f"start={trained(was)}"]))


def test_the_rank_of_adapters_that_are_no_lora_does_not_matter_to_a_start(small, trained):
    start = trained("adapters.rank=4")
    done = train(load_config(Config, overrides=[*small, "adapters.rank=2", f"start={start}", "name=rank"]))
    assert weights(done.run.path).keys() == weights(start).keys()


def test_a_start_with_learned_tokens_trains_on(small, trained):
    start = trained(ON)
    done = train(load_config(Config, overrides=[*small, ON, f"start={start}", "stages.text.epochs=0", "name=on"]))
    name = "text_adapter.tokens.weight"
    assert torch.equal(weights(done.run.path)[name], weights(start)[name])
