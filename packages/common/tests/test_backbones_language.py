"""Causal language models: the logits of transformers, quantized layers that train, fingerprints, and bad folders."""

import json
import sys

import pytest
import torch
import transformers
from helpers.real import real_model
from toy_language import CHAT, write_language

from clip_common.backbones import (
    BackboneError,
    check_quantization,
    frozen,
    load_language,
    make_cache,
    save_language,
)
from clip_common.backbones.language import find_weights
from clip_common.tensors import read_tensors, write_tensors

IDS_1T = torch.tensor([[6, 7, 8, 9, 10, 11, 1]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS_1T).logits


def gradient(model):
    embeds_1TE = model.get_input_embeddings()(IDS_1T).detach().requires_grad_()
    model(inputs_embeds=embeds_1TE).logits.float().square().mean().backward()
    return embeds_1TE.grad


@pytest.mark.parametrize("tied", [True, False])
def test_the_logits_are_those_of_transformers(tied, tmp_path):
    folder = write_language(tmp_path / "Füße", tied=tied)
    language = load_language(folder)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(language.model), logits(plain))
    assert not language.model.training
    assert not any(weight.requires_grad for weight in language.model.parameters())
    assert language.tokenizer("what is this")["input_ids"] == [6, 7, 8]
    spec = language.spec
    assert (spec.name, spec.width, spec.vocabulary, spec.context) == (str(folder), 64, 16, 96)
    assert (spec.quantization, spec.stop_ids) == ("none", (1,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_model_keeps_the_dtype_of_embeddings_norms_and_head(quantization, dtype, tmp_path):
    folder = write_language(tmp_path / "model", tied=False)
    model = load_language(folder, quantization=quantization, dtype=dtype).model
    layers = {name: type(part).__name__ for name, part in model.named_modules() if "Linear" in type(part).__name__}
    assert layers.pop("lm_head") == "Linear"
    assert set(layers.values()) == {"Linear4bit" if quantization == "4bit" else "Linear8bitLt"}
    plain = {name: weight.dtype for name, weight in model.named_parameters() if weight.dtype.is_floating_point}
    assert set(plain.values()) == {dtype}
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= set(plain)
    reference = logits(load_language(folder).model)
    error = (logits(model).float() - reference).norm() / reference.norm()
    assert 0 < error < (0.5 if quantization == "4bit" else 0.05)


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_evaluation_of_a_quantized_model_changes_neither_its_output_nor_its_gradient(quantization, tmp_path):
    model = load_language(write_language(tmp_path / "model"), quantization=quantization).model
    before = gradient(model)
    assert before.abs().sum() > 0
    first = logits(model)
    assert torch.equal(gradient(model), before)
    assert torch.equal(logits(model), first)


def test_the_fingerprint_is_that_of_the_stored_weights(tmp_path, monkeypatch):
    folder = write_language(tmp_path / "model")
    own = load_language(folder).spec.fingerprint
    for quantization in ("none", "4bit", "8bit"):
        assert load_language(folder, quantization=quantization, dtype=torch.bfloat16).spec.fingerprint == own
    sharded = write_language(tmp_path / "sharded", max_shard_size="60kB")
    assert len(find_weights(sharded)) > 1
    assert load_language(sharded).spec.fingerprint == own
    assert load_language(write_language(tmp_path / "other", seed=1)).spec.fingerprint != own
    tokens = load_language(folder, weights=False)
    assert tokens.model is None
    assert tokens.spec.fingerprint not in ("", own)
    assert (tokens.spec.width, tokens.spec.stop_ids) == (64, (1,))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_training_a_single_tensor_of_a_large_file_changes_its_fingerprint(name, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "HASHED_WHOLE", 0)
    monkeypatch.setattr(frozen, "SAMPLE", 64)
    folder = write_language(tmp_path / "model")
    file = folder / "model.safetensors"
    before = load_language(folder).spec.fingerprint
    assert load_language(folder).spec.fingerprint == before
    assert load_language(write_language(tmp_path / "sharded", max_shard_size="60kB")).spec.fingerprint == before
    tensors = read_tensors(file)
    write_tensors(file, tensors | {name: tensors[name] + 1e-3 * torch.randn_like(tensors[name])})
    assert load_language(folder).spec.fingerprint != before


@pytest.mark.parametrize("size", [64 * 1024 + 1, 100_000_001])
def test_samples_of_a_tensor_reach_from_its_first_to_its_last_byte(size):
    spread = frozen.spread_samples(size)
    assert spread[0] == (0, 4096)
    assert sum(spread[-1]) == size
    assert len(spread) == 16


def test_an_answer_ends_with_any_of_the_tokens_that_the_folder_names(tmp_path):
    folder = write_language(tmp_path / "model", chat=CHAT)
    assert load_language(folder).spec.stop_ids == (1, 3)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1]}))
    assert load_language(folder).spec.stop_ids == (1, 5, 3)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ raise_exception('no') }}{% endfor %}")
    with pytest.raises(BackboneError, match=r"its chat template cannot be read: no$"):
        load_language(folder)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"generation_config\.json cannot be read"):
        load_language(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_has_the_same_logits(dtype, tmp_path, capfd):
    language = load_language(write_language(tmp_path / "model", chat=CHAT), dtype=dtype)
    capfd.readouterr()
    save_language(language.model, language.tokenizer, tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    again = load_language(tmp_path / "saved", dtype=dtype)
    assert torch.equal(logits(again.model), logits(language.model))
    assert again.spec.stop_ids == language.spec.stop_ids
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "saved").iterdir()} == {0o644}
    with pytest.raises(ValueError, match="exists"):
        save_language(language.model, language.tokenizer, tmp_path / "saved")


def test_a_quantized_model_is_not_saved(tmp_path):
    language = load_language(write_language(tmp_path / "model"), quantization="4bit")
    with pytest.raises(BackboneError, match="quantized, which loses precision"):
        save_language(language.model, language.tokenizer, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_cache_gives_the_logits_of_the_whole_sequence(tmp_path):
    model, cache = load_language(write_language(tmp_path / "model")).model, make_cache()
    with torch.no_grad():
        model(input_ids=IDS_1T[:, :3], past_key_values=cache, use_cache=True)
        rest = model(input_ids=IDS_1T[:, 3:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(rest, logits(model)[:, 3:], atol=1e-5, rtol=0)


def refuse(folder, match, **options):
    with pytest.raises(BackboneError, match=match) as caught:
        load_language(folder, **options)
    assert "\n" not in str(caught.value)


def test_bad_folders_are_refused_in_one_line(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(empty, "cannot be loaded as a transformers model")
    refuse(tmp_path / "absent", "no such folder")
    refuse(write_language(tmp_path / "endless", eos=None), "has no end-of-text token: set eos_token")
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "masked")
    refuse(tmp_path / "masked", "holds a BertForMaskedLM: expected a causal language model")
    stored = write_language(tmp_path / "stored")
    settings = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(
        json.dumps(settings | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}})
    )
    refuse(stored, "is stored quantized: give the model in its full precision")


def test_damaged_or_incomplete_weights_are_refused_in_one_line(tmp_path):
    folder = write_language(tmp_path / "model")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    refuse(folder, "cannot be loaded as a transformers model")
    with pytest.raises(BackboneError, match="is damaged: get it again"):
        frozen.fingerprint_files([file])
    file.write_bytes(b"no header")
    with pytest.raises(BackboneError, match="is damaged: get it again"):
        frozen.fingerprint_files([file])
    file.write_bytes(content)
    tensors = {name: tensor.clone() for name, tensor in read_tensors(file).items() if "up_proj" not in name}
    write_tensors(file, tensors)
    refuse(folder, r"is incomplete: 2 weights are missing \(model\.layers\.0\.mlp\.up_proj\.weight")
    file.unlink()
    refuse(folder, "cannot be loaded")
    with pytest.raises(BackboneError, match=r"has no model\.safetensors"):
        find_weights(folder)
    (folder / "tokenizer.json").write_text("{")
    refuse(folder, "has no tokenizer that transformers can read")


def test_a_quantization_that_cannot_run_is_refused_in_one_line(tmp_path, monkeypatch):
    folder = write_language(tmp_path / "model")
    with pytest.raises(BackboneError, match="quantization=8bit does not run on cuda:99 with this bitsandbytes"):
        check_quantization("8bit", "cuda:99")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    refuse(folder, r"quantization=4bit needs bitsandbytes .*: install clip-common\[quantize\]", quantization="4bit")
    assert load_language(folder).spec.quantization == "none"


@pytest.mark.real
@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_the_real_qwen(quantization):
    folder = real_model("qwen")
    language = load_language(folder, quantization=quantization, dtype=torch.bfloat16)
    assert (language.spec.width, language.spec.vocabulary, language.spec.context) == (896, 151936, 32768)
    assert language.spec.stop_ids == (language.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    prompt = language.tokenizer("def fibonacci(n):", return_tensors="pt")
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        ours, theirs = language.model(**prompt).logits.float(), reference(**prompt).logits.float()
    if quantization == "none":
        assert torch.equal(ours, theirs)
    assert (ours - theirs).norm() / theirs.norm() < {"none": 1e-9, "8bit": 0.15, "4bit": 0.4}[quantization]
    answer = language.model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert language.tokenizer.decode(answer).startswith("\n    if n <= ")
