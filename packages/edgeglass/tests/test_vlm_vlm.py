"""VLM in use: saved and loaded in every number format, questions, conversations, merging, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import toy_decoders
from toy_questions import configured

from clip_common.backbones.language import load_language
from clip_common.tensors import read_tensors
from edgeglass.aligner.aligner import Aligner
from edgeglass.models.vlm.trm import HaltPolicy
from edgeglass.vlm.building import build_vlm, load_decoder, load_prefix
from edgeglass.vlm.files import load_vlm
from edgeglass.vlm.merging import merge_adapters
from edgeglass.vlm.vlm import VLM

QUESTIONS = ["what colour is the mug?", "how many things are there?", "where is the blue umbrella?"]
FORMATS = {
    "float32": ["decoder.dtype=float32"],
    "bfloat16": ["decoder.dtype=bfloat16"],
    "nf4": ["decoder.dtype=bfloat16", "decoder.quantization=4bit"],
    "int8": ["decoder.dtype=bfloat16", "decoder.quantization=8bit"],
}


def build(asked, *overrides) -> VLM:
    """A model with random adapters, projector and recursion, as if it had been trained."""
    config = configured(asked, "trm.steps=2", *overrides)
    language, (prefix, sight) = load_decoder(config), load_prefix(config)
    model = build_vlm(config, prefix=prefix, language=language)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "gate_E" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return VLM(model, config, sight=sight, language=language, device="cpu")


@pytest.fixture
def image(question_parts) -> Path:
    return sorted((question_parts / "questions" / "images").iterdir())[0]


@torch.no_grad()
def logits(vlm, image):
    reading, prefix = vlm.read_image(image)
    prompt = vlm.encode_question([], QUESTIONS[0], prefix=prefix)
    embeds, valid = vlm.embed_left([prompt.ids])
    positions = torch.arange(prefix, prefix + len(prompt.ids))[None]
    mask = torch.ones(len(prompt.ids), prefix + len(prompt.ids), dtype=torch.bool).tril(prefix)[None, None]
    assert bool(valid.all())
    state, _ = vlm.model.final_state(embeds, mask_R1TK=mask, positions_RT=positions, cache=reading.cache)
    return vlm.model.decoder.logits(state)


@pytest.mark.parametrize("format", FORMATS)
def test_a_saved_model_has_the_same_logits(asked, image, tmp_path, format):
    vlm = build(asked, *FORMATS[format])
    expected = logits(vlm, image)
    vlm.save_pretrained(tmp_path / "saved ü")
    loaded = VLM.from_pretrained(tmp_path / "saved ü", device="cpu")
    assert torch.equal(logits(loaded, image), expected)
    names = {name.split(".")[0] for name in read_tensors(tmp_path / "saved ü" / "model.safetensors")}
    assert names == {"vision_proj", "recursion", "decoder"}


def test_several_questions_read_the_image_once_and_are_answered_as_alone(asked, image, monkeypatch):
    vlm = build(asked)
    alone = [vlm.ask(image, question) for question in QUESTIONS]
    read = []
    monkeypatch.setattr(vlm, "load_features", lambda images, load=vlm.load_features: read.append(1) or load(images))
    assert vlm.ask(image, QUESTIONS) == alone
    assert len(read) == 1
    assert len(set(alone)) > 1
    assert "".join(vlm.stream(image, QUESTIONS[0])) == alone[0]


def test_a_batch_is_answered_as_its_questions_alone(asked, question_parts):
    vlm = build(asked)
    images = sorted((question_parts / "questions" / "images").iterdir())[:2]
    features = vlm.load_features(images)
    count = vlm.model.prefix_lengths(features)[0]
    owners = [0, 1, None, 0]
    questions = [*QUESTIONS, "is there a star?"]
    prompts = [
        vlm.encode_question([], question, prefix=None if owner is None else count)
        for question, owner in zip(questions, owners, strict=True)
    ]
    expected = [
        vlm.ask(None if owner is None else images[owner], question)
        for question, owner in zip(questions, owners, strict=True)
    ]
    assert vlm.answer_batch(features, prompts, owners) == expected


@pytest.mark.parametrize("layout", ["plain", "chat"])
def test_a_conversation_answers_as_if_all_of_it_were_read_anew(asked, image, layout):
    vlm = build(asked, f"data.layout={layout}")
    chat = vlm.chat(image)
    for question in QUESTIONS:
        features = vlm.load_features([image])
        prompt = vlm.encode_question(chat.turns, question, prefix=vlm.model.prefix_lengths(features)[0])
        expected = vlm.answer_batch(features, [prompt], [0])
        assert [chat.ask(question)] == expected
    assert [question for question, _ in chat.turns] == QUESTIONS


def test_a_conversation_that_outgrows_the_context_goes_on_without_its_first_turns(asked, image):
    vlm = build(asked, "data.max_length=60")
    chat = vlm.chat(image)
    for _ in range(4):
        chat.ask(QUESTIONS[2])
    assert len(chat.turns) == 4
    with pytest.raises(ValueError, match="leaves"):
        build(asked, "data.max_length=12").ask(image, QUESTIONS[0])


def test_loops_at_run_time(asked, image, tmp_path):
    vlm = build(asked)
    vlm.save_pretrained(tmp_path / "saved")
    none = VLM.from_pretrained(tmp_path / "saved", device="cpu", steps=0)
    more = VLM.from_pretrained(tmp_path / "saved", device="cpu", steps=5)
    vlm.model.recursion = None
    assert torch.equal(logits(none, image), logits(vlm, image))
    assert not torch.allclose(logits(more, image), logits(none, image), atol=1e-3)
    assert more.model.halt == HaltPolicy(5)


def test_merged_adapters_answer_as_before(asked, image, tmp_path):
    vlm = build(asked)
    expected, answers = logits(vlm, image), vlm.ask(image, QUESTIONS)
    merge_adapters(vlm, tmp_path / "merged")
    moved = shutil.move(tmp_path / "merged", tmp_path / "moved")
    merged = VLM.from_pretrained(moved, device="cpu")
    torch.testing.assert_close(logits(merged, image), expected, rtol=1e-4, atol=1e-4)
    assert merged.ask(image, QUESTIONS) == answers
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    plain = load_language(Path(moved) / "decoder")  # a folder of transformers like any other
    assert type(plain.model).__name__ == "Qwen2ForCausalLM"
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_adapters(merged, tmp_path / "again")


def test_a_quantised_model_is_not_merged(asked, tmp_path):
    vlm = build(asked, *FORMATS["nf4"])
    with pytest.raises(ValueError, match="load the model with quantization=none"):
        merge_adapters(vlm, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_model_of_another_base_is_refused(asked, question_parts, tmp_path):
    build(asked).save_pretrained(tmp_path / "saved")
    marker = tmp_path / "saved" / "config.json"
    content = json.loads(marker.read_text())
    other = toy_decoders.save_language_toy(tmp_path / "other", seed=1)
    content["config"]["decoder"]["name"] = str(other)
    marker.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is of another model: it was made with the language model") as caught:
        load_vlm(tmp_path / "saved")
    assert "\n" not in str(caught.value)
    content["config"]["decoder"]["name"] = str(tmp_path / "gone")
    marker.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="needs the models that it was trained with"):
        load_vlm(tmp_path / "saved")


def test_a_projector_without_its_adapters_is_refused(asked, tmp_path):
    """One file holds both: weights of another run, or of a projector phase, do not load."""
    build(asked).save_pretrained(tmp_path / "both")
    build(asked, "phase=projector").save_pretrained(tmp_path / "projector")
    shutil.copy(tmp_path / "projector" / "model.safetensors", tmp_path / "both" / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing, such as decoder\..*lora_A"):
        VLM.from_pretrained(tmp_path / "both")


def test_bad_input_is_one_line(asked, image, tmp_path):
    vlm = build(asked)
    with pytest.raises(ValueError, match="the question is empty"):
        vlm.ask(image, "  ")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        vlm.ask(broken, QUESTIONS[0])
    with pytest.raises(ValueError, match="no such file"):
        vlm.ask(tmp_path / "absent.jpg", QUESTIONS[0])


def test_the_two_kinds_of_models_are_told_apart(asked, tmp_path):
    build(asked).save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="answers questions"):
        Aligner.from_pretrained(tmp_path / "saved")
