"""On a GPU, in float32: a conversation alone, batched and packed; kept keys and values; nf4 weights that move there."""

import pytest
import torch
import toy_decoders
from test_models_vlm_sequences import IMAGES, KINDS, LENGTHS, draw_images_of, encode, layouts
from toy_decoders import QUESTIONS, build_toy, draw_images, make_layout

from clip_common.backbones import BackboneError, check_quantization
from clip_common.backbones.trunk import TokenSequence
from edgeglass.models.vlm.generation import Reading, collect, generate
from edgeglass.models.vlm.sequences import pack_conversations, pad_conversations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("exact_products"),
]
NEW = 6


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return toy_decoders.load_toy(tmp_path_factory.mktemp("toy") / "language")


def on_gpu(images: TokenSequence) -> TokenSequence:
    return TokenSequence(images.tokens.cuda(), images.mask.cuda())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_alone_are_those_of_padded_and_packed_rows(kind, tmp_path):
    language = toy_decoders.load_toy(tmp_path / "language")
    model = build_toy(kind, language, supervise="all")
    encoded, images = encode(language), draw_images(*LENGTHS)
    with torch.no_grad():
        on_cpu = model(pad_conversations(encoded, IMAGES, LENGTHS), images).losses_S
        model.cuda()
        alone = []
        for one, image in zip(encoded, IMAGES, strict=True):
            own = None if image is None else on_gpu(draw_images_of(images, image))
            rows = pad_conversations([one], [None if image is None else 0], [] if image is None else [LENGTHS[image]])
            alone.append(model(rows.to(model.device), own).losses_S)
        expected = torch.cat(alone)
        torch.testing.assert_close(expected.cpu(), on_cpu, rtol=1e-4, atol=1e-4)
        for name, rows in layouts(encoded).items():
            found = model(rows.to(model.device), on_gpu(images)).losses_S
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)


@torch.no_grad()
def answer_anew(model, prompt, image):
    """Greedy decoding that reads everything again for every token."""
    embeds = model.embed(pad_conversations([prompt], [0], [5]).to(model.device), image)
    tokens = []
    for _ in range(NEW):
        length = embeds.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=embeds.device).tril()[None, None]
        positions = torch.arange(length, device=embeds.device)[None]
        state, _ = model.final_state(embeds, mask_R1TK=mask, positions_RT=positions)
        tokens.append(int(model.decoder.logits(state[:, -1]).argmax()))
        embeds = torch.cat((embeds, model.decoder.embed(torch.tensor([tokens[-1:]], device=embeds.device))), dim=1)
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_from_the_cache_are_those_of_reading_everything_anew(kind, language):
    model = build_toy(kind, language, lora=False).cuda()
    prompts = [make_layout(language).encode_question([], question, image=True) for question in QUESTIONS]
    image = on_gpu(draw_images(5))
    expected = [answer_anew(model, prompt, image) for prompt in prompts]
    batched = answer(model, pad_conversations(prompts, [0] * 4, [5], side="left"), image)
    alone = [answer(model, pad_conversations([prompt], [0], [5]), image)[0] for prompt in prompts]
    assert batched == alone == expected


@torch.no_grad()
def answer(model, rows, image):
    rows = rows.to(model.device)
    embeds = model.embed(rows, image)
    reading = Reading.start(len(embeds), device=embeds.device)
    steps = generate(model, reading, embeds, rows.valid(), max_new_tokens=NEW, stop_ids=(10_000,))
    return collect(steps, len(embeds))


def test_nf4_weights_move_to_the_gpu_and_train_there(tmp_path):
    try:
        check_quantization("4bit", "cuda")
    except BackboneError as error:
        pytest.skip(str(error))
    language = toy_decoders.load_toy(tmp_path / "language", quantization="4bit")
    model = build_toy("qwen+trm", language)
    encoded, images = encode(language), draw_images(*LENGTHS)
    rows = pack_conversations(encoded, IMAGES, LENGTHS, row_length=120)
    on_cpu = model(rows, images).loss.detach()
    model.to("cuda")
    loss = model(rows.to(model.device), on_gpu(images)).loss
    assert loss.item() == pytest.approx(on_cpu.item(), rel=1e-2)
    loss.backward()
    learned = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0}
    assert any("lora_A" in name for name in learned)
    assert any("vision_proj" in name for name in learned)
    assert {part.weight.device.type for part in model.decoder.model.modules() if hasattr(part, "quant_state")} <= {
        "cuda"
    }
