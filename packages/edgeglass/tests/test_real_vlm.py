"""A real Qwen2.5-0.5B, where it is at hand: batches, packing, caches and number formats through the same classes."""

import pytest
import torch
from helpers.real import real_data, real_model
from test_models_vlm_generation import LENGTH, answer_anew, answer_cached, embed_texts
from toy_decoders import build_toy, draw_images, make_layout

from clip_common.backbones.language import load_language
from clip_common.config import load_config
from edgeglass.config import VlmConfig
from edgeglass.models.vlm.generation import Reading, read
from edgeglass.models.vlm.sequences import pack_conversations, pad_conversations
from edgeglass.training.vlm_experiment import train_vlm
from edgeglass.vlm.vlm import VLM

pytestmark = pytest.mark.real

TURNS = [("What is this?", "a dog"), ("Name the capital of France.", "Paris"), ("How many?", "two hundred and five")]


@pytest.fixture(scope="module")
def qwen():
    return load_language(real_model("qwen"))


@pytest.mark.parametrize("layout", ["plain", "chat"])
def test_losses_are_the_same_alone_batched_and_packed(qwen, layout):
    model = build_toy("qwen", qwen, lora=False)
    text = make_layout(qwen, layout)
    encoded = [text.encode([turn], image=image is not None) for turn, image in zip(TURNS, (0, None, 0), strict=True)]
    owners, images = [0, None, 0], draw_images(LENGTH)
    with torch.no_grad():
        alone = []
        for one, owner in zip(encoded, owners, strict=True):
            rows = pad_conversations([one], [owner], [LENGTH])
            alone.append(model(rows, None if owner is None else images).losses_S)
        expected = torch.cat(alone)
        for rows in (
            pad_conversations(encoded, owners, [LENGTH]),
            pad_conversations(encoded, owners, [LENGTH], side="left"),
            pack_conversations(encoded, owners, [LENGTH], row_length=500),
        ):
            # 24 layers of float32 round 1.2e-5 of a loss away
            torch.testing.assert_close(model(rows, images).losses_S, expected, rtol=3e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen", "qwen+trm"])
def test_cached_answers_with_one_reading_of_the_image_are_those_of_reading_everything_anew(qwen, kind):
    model = build_toy(kind, qwen, lora=False)
    if model.recursion is not None:
        torch.nn.init.normal_(model.recursion.gate_E, std=0.1)
    text = make_layout(qwen, "chat")
    prompts = [text.encode_question([], question, image=True) for question, _ in TURNS[1:]]
    image = draw_images(LENGTH)
    expected = [answer_anew(model, prompt, image) for prompt in prompts]
    before = torch.tensor([prompts[0].before], dtype=torch.long)
    with torch.no_grad():
        head = torch.cat((model.decoder.embed(before), model.project(image)), dim=1)
        reading = Reading.start(1, device=head.device)
        read(model, reading, head, torch.ones(head.shape[:2], dtype=torch.bool))
        embeds, valid = embed_texts(model, prompts)
    tokens, logits = answer_cached(model, reading.repeat(2), embeds, valid)
    assert tokens == [one for one, _ in expected]
    torch.testing.assert_close(logits, torch.stack([one for _, one in expected]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_a_step_on_real_captions_is_saved_and_answers(tmp_path, quantization):
    overrides = [
        f"data.root={real_data('captions')}",
        "data.hold_out=4",
        "data.batch_size=2",
        "data.per_image=1",
        f"prefix.name={real_model('dinov2')}",
        "prefix.image_size=112",
        "prefix.merge=2",
        f"decoder.name={real_model('qwen')}",
        f"decoder.quantization={quantization}",
        "decoder.lora.r=4",
        "answer.max_new_tokens=3",
        "trainer.devices=cpu",
        "trainer.fast_dev_run=true",
        f"runs={tmp_path / 'runs'}",
        "name=captions",
    ]
    trained = train_vlm(load_config(VlmConfig, overrides=overrides, package="edgeglass"))
    vlm = VLM.from_pretrained(trained.run.path, device="cpu")
    image = next((real_data("captions") / "Images").glob("*.jpg"))
    assert isinstance(vlm.caption(image), str)
    assert vlm.language.spec.quantization == quantization
