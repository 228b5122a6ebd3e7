"""A CLIPModel of transformers as an open_clip network with its projections: configuration and names of weights.

Shapes: D shared width, F width.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_common.backbones.huggingface import one_line, without_code, without_report
from clip_common.backbones.spec import BackboneError

KINDS = ("clip", "siglip")
"""`model_type` of the models of transformers that `load_clip` reads."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Names of the weights of a transformers model."""
TOWERS = {"vision_model.": "visual.", "text_model.": "text."}
BLOCKS = "transformer.resblocks."
RENAMED = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.": "conv1.",
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": BLOCKS,
}
"""Names inside a tower that begin with the key, in transformers, begin with the value in open_clip."""
IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
PROJECTIONS = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text.text_projection"}


def read_kind(folder: Path) -> str | None:
    """Return the `model_type` in a config.json of transformers; None if the folder has none."""
    return _read_json(folder).get("model_type")


def is_of_transformers(folder: Path) -> bool:
    """Return whether a folder holds a model of transformers that no package of ours saved."""
    content = _read_json(folder)
    return "model_type" in content and "package" not in content


def _read_json(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def find_weights(folder: Path) -> Path:
    """Return the file of weights, or the index of several, of a transformers model.

    Raises:
        BackboneError: There is none.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise BackboneError(f"{folder} has no weights: expected {' or '.join(WEIGHTS)} beside its config.json")
    return found


def read_config(folder: Path) -> Any:
    """Return the configuration of a CLIPModel or SiglipModel.

    Raises:
        BackboneError: Damaged, or one that transformers does not accept.
    """
    import transformers

    try:
        with without_code(), without_report():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # a damaged file raises anything
    except Exception as error:
        raise BackboneError(f"{folder}/config.json cannot be read by transformers: {one_line(error)}") from error


def convert_config(config: Any, *, folder: Path) -> dict[str, Any]:
    """Return the open_clip model configuration of a CLIPConfig.

    Args:
        config: Of transformers.
        folder: With the model, for messages.

    Raises:
        BackboneError: Towers of two activations, or of one that open_clip lacks.
    """
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act:
        raise BackboneError(
            f"{folder} has towers of two activations ({vision.hidden_act} and {text.hidden_act}), which open_clip's "
            "network cannot hold: load its halves with load_dual"
        )
    act: dict[str, Any] = {"gelu": {}, "quick_gelu": {}}.get(vision.hidden_act, {"approximate": "tanh"})
    if act and vision.hidden_act not in ("gelu_pytorch_tanh", "gelu_new"):
        raise BackboneError(
            f"{folder} has the activation {vision.hidden_act}: expected quick_gelu, gelu or gelu_pytorch_tanh; load "
            "its halves with load_dual"
        )
    # transformers takes the largest id for the end of a text if the configuration says 2, as OpenAI's first one did
    end = {"pool_type": "argmax"} if text.eos_token_id == 2 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": config.projection_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            **_common(vision, act),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "layers": text.num_hidden_layers,
            "heads": text.num_attention_heads,
            **_common(text, act),
            **end,
        },
        "quick_gelu": vision.hidden_act == "quick_gelu",
    }


def _common(tower: Any, act: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that both towers have in common."""
    width, wide = tower.hidden_size, tower.intermediate_size
    return {
        "mlp_ratio": wide / width if wide % width == 0 else (wide + 0.5) / width,  # open_clip cuts width · ratio
        "norm_kwargs": {"eps": tower.layer_norm_eps},
        **({"act_kwargs": dict(act)} if act else {}),
    }


def is_named_by_transformers(state: Mapping[str, Tensor]) -> bool:
    """Return whether weights have the names of a CLIPModel."""
    return any(name.startswith(("vision_model.encoder.", "text_model.encoder.")) for name in state)


def rename_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a CLIPModel under open_clip's names; others keep theirs."""
    renamed: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        tower = next((prefix for prefix in TOWERS if name.startswith(prefix)), None)
        if name in PROJECTIONS:
            renamed[PROJECTIONS[name]] = tensor.T  # (D, F) of a linear layer to (F, D)
        elif tower is None:
            renamed[name] = tensor
        elif not name.endswith(".position_ids"):  # written by transformers before 4.31
            inner = _rename_in_tower(name.removeprefix(tower))
            place, joined, part = inner.partition(".self_attn.")
            if joined and part[0] in "qkv":
                letter, _, kind = part.partition("_proj.")
                attention.setdefault(f"{TOWERS[tower]}{place}.attn.in_proj_{kind}", {})[letter] = tensor
            else:
                renamed[TOWERS[tower] + inner] = tensor
    for name, parts in attention.items():
        if parts.keys() == set("qkv"):
            renamed[name] = torch.cat([parts[letter] for letter in "qkv"])
    return renamed


def _rename_in_tower(name: str) -> str:
    theirs = next((prefix for prefix in RENAMED if name.startswith(prefix)), None)
    if theirs is None:
        return name
    name = RENAMED[theirs] + name.removeprefix(theirs)
    if theirs == "encoder.layers.":
        number, _, part = name.removeprefix(BLOCKS).partition(".")
        for old, new in IN_BLOCK.items():
            if part.startswith(f"{old}."):
                part = new + part.removeprefix(old)
        name = f"{BLOCKS}{number}.{part}"
    return name
