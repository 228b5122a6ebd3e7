"""Folders that bring code of their own: no loader runs it, none asks whether it should, each says so in one line."""

import io
import json
import shutil

import pytest
import transformers

from clip_common.backbones import BackboneError, load_bundle, load_clip, load_dual, load_language, save_bundle
from clip_common.backbones.huggingface import load_model, load_tokenizer, without_code
from clip_common.backbones.tokenizers import ClipTokenizer

CODE = """
from pathlib import Path
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

Path(__file__).parent.joinpath("ran").touch()
Path({ran!r}).touch()

class EvilConfig(PretrainedConfig):
    model_type = "evil"

class EvilModel(PreTrainedModel):
    config_class = EvilConfig

class EvilTokenizer(PreTrainedTokenizerFast):
    pass

class EvilModule(nn.Module):
    @staticmethod
    def load(*arguments, **options):
        return EvilModule()
"""
MODEL = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel", "AutoTokenizer": ["evil.EvilTokenizer"] * 2}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1},
}


def words():
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = Tokenizer(models.WordLevel({"[UNK]": 0, "dog": 1}, unk_token="[UNK]"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=known, unk_token="[UNK]", pad_token="[UNK]")


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A folder that is all code, and a person who says yes to everything that is asked."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": MODEL}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EvilTokenizer", "auto_map": MODEL}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def good(tmp_path):
    """A text model without any code."""
    transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=9)).save_pretrained(tmp_path / "good")
    words().save_pretrained(tmp_path / "good")
    return tmp_path / "good"


@pytest.fixture
def vision(tmp_path):
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "vision")
    return tmp_path / "vision"


@pytest.fixture
def refused(tmp_path, capsys):
    """`refused(load, …)` fails in one line that speaks of code; nothing ran and nothing was asked."""

    def check(load, *arguments, **options):
        with pytest.raises(BackboneError, match="code of its own") as caught:
            load(*arguments, **options)
        assert "\n" not in str(caught.value)
        assert "trust_remote_code" not in str(caught.value)
        nothing_ran(tmp_path, capsys)

    return check


def nothing_ran(folder, capsys):
    assert not list(folder.rglob("ran"))
    assert "[y/N]" not in "".join(capsys.readouterr())


def test_a_vision_model(evil, good, refused):
    refused(load_dual, vision=evil, text=good)


def test_a_text_model(evil, vision, refused):
    refused(load_dual, vision=vision, text=evil)


def test_a_known_configuration_that_only_its_own_code_can_build(evil, vision, refused):
    (evil / "config.json").write_text(json.dumps({"model_type": "clipseg_text_model", "auto_map": MODEL}))
    for side in ("vision", "text"):
        refused(load_dual, **({"vision": vision, "text": vision} | {side: evil}))


def test_a_configuration_inside_a_known_one(evil, refused):
    # its constructor builds the inner model without a word about trust
    inner = {"model_type": "clipseg_vision_model", "auto_map": MODEL}
    (evil / "config.json").write_text(json.dumps({"model_type": "llava", "vision_config": inner}))
    refused(load_model, evil, parts={}, optional=())


def test_a_module_of_a_sentence_transformer(evil, good, vision, refused):
    (good / "evil.py").write_text((evil / "evil.py").read_text())
    (good / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "evil.EvilModule"}]))
    refused(load_dual, vision=vision, text=good)


def test_a_module_that_any_installed_package_has(good, vision, refused):
    (good / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "subprocess.Popen"}]))
    refused(load_dual, vision=vision, text=good)


def test_a_module_within_a_router_of_a_sentence_transformer(evil, good, vision, refused):
    (good / "evil.py").write_text((evil / "evil.py").read_text())
    router = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Router"}
    (good / "modules.json").write_text(json.dumps([router]))
    routes = {"types": {"query_0": "evil.EvilModule"}, "structure": {"query": ["query_0"]}, "parameters": {}}
    (good / "router_config.json").write_text(json.dumps(routes))
    refused(load_dual, vision=vision, text=good)


def test_the_transformer_of_a_sentence_transformer_even_where_its_folder_says_that_it_is_trusted(evil, vision, refused):
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"}
    (evil / "modules.json").write_text(json.dumps([module]))
    trusted = {name: {"trust_remote_code": True} for name in ("model_args", "tokenizer_args", "config_args")}
    (evil / "sentence_bert_config.json").write_text(json.dumps(trusted))
    refused(load_dual, vision=vision, text=evil)


def test_a_language_model(evil, refused):
    refused(load_language, evil)


def test_a_tokenizer_on_its_own(evil, refused):
    refused(load_tokenizer, evil)
    refused(ClipTokenizer, {"hf_tokenizer_name": str(evil)})
    refused(ClipTokenizer, {"hf_tokenizer_name": str(evil), "tokenizer_kwargs": {"trust_remote_code": True}})


def test_a_tokenizer_beside_a_model_that_transformers_knows(evil, good, vision, tmp_path, capsys):
    (good / "evil.py").write_text((evil / "evil.py").read_text())
    settings = json.loads((good / "tokenizer_config.json").read_text())
    (good / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": MODEL}))
    load_dual(vision=vision, text=good)  # by the class of transformers
    nothing_ran(tmp_path, capsys)


def write_clip(folder, text):
    """An open_clip folder with this text configuration; nobody comes as far as its weights."""
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG | {"text_cfg": text}}))
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    return f"local-dir:{folder}"


def test_the_text_tower_of_a_local_clip(evil, tmp_path, refused):
    text = {"hf_model_name": str(evil), "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler", "context_length": 8}
    refused(load_clip, write_clip(tmp_path / "clip", text))
    (evil / "config.json").write_text(json.dumps({"model_type": "clipseg_text_model", "auto_map": MODEL}))
    refused(load_clip, write_clip(tmp_path / "clip", text))


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
def test_the_tokenizer_of_a_local_clip(evil, tmp_path, refused, options):
    save_bundle(load_clip("small", model_config=CONFIG), tmp_path / "saved")
    text = CONFIG["text_cfg"] | {"hf_tokenizer_name": "some/words", "tokenizer_kwargs": options}
    name = write_clip(evil, text)
    shutil.copy(tmp_path / "saved" / "open_clip_model.safetensors", evil / "open_clip_model.safetensors")
    refused(load_clip, name)


@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_a_saved_bundle(evil, good, tmp_path, refused, what):
    text = {
        "hf_model_name": str(good),
        "hf_tokenizer_name": str(good),
        "hf_proj_type": "linear",
        "hf_pooler_type": "mean_pooler",
        "context_length": 8,
    }
    saved = tmp_path / "saved"
    save_bundle(load_clip("words", model_config=CONFIG | {"text_cfg": text}), saved)
    place = saved / "text_config" if what == "model" else saved
    for name in ("evil.py", "config.json" if what == "model" else "tokenizer_config.json"):
        shutil.copy(evil / name, place / name)
    refused(load_bundle, saved)


def test_elsewhere_transformers_asks_as_before():
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with without_code():
        assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == 0
    assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == before > 0
