"""Constructing an open_clip network and loading a file of weights, with a one-line error for one that does not fit."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    CustomTextCLIP,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from torch import Tensor

from clip_common.backbones.spec import BackboneError
from clip_common.backbones.transformers_clip import is_named_by_transformers, rename_weights
from clip_common.tensors import TensorsError, check_fit, read_checkpoint

IMAGE = ("visual.",)
TEXT = ("text.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
"""Prefixes of the names of a tower's weights; those of texts in a separate tower or in OpenAI's flat layout."""


OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
"""Numbers beside the weights in OpenAI's TorchScript archives."""
MASKS = ("attn_mask", "text.attn_mask")
"""Buffers that only TorchScript archives hold."""
PUBLISHED = {"ViT-L-14-336px.pt": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"}
"""sha256 of OpenAI's archives, by the names of their files."""
SMALL_IMAGE = {"image_size": 1, "patch_size": 1, "width": 64, "layers": 1, "head_width": 64}
SMALL_TEXT = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
"""Towers that are constructed in the place of one that is left out."""


def construct_network(config: Mapping[str, Any], *, image: bool, text: bool) -> CustomTextCLIP:
    """Return an untrained network; a tower that is left out is on the meta device if it is open_clip's own.

    It takes no memory then, not even while the network is constructed. A tower of timm or transformers is constructed
    whole.

    Args:
        config: open_clip model configuration.
        image, text: Whether the tower will be used.
    """
    image = image or "timm_model_name" in config["vision_cfg"]
    text = text or "hf_model_name" in config["text_cfg"]
    if image and text:
        return CustomTextCLIP(**config)
    small = ({} if image else {"vision_cfg": SMALL_IMAGE}) | ({} if text else {"text_cfg": SMALL_TEXT})
    network = CustomTextCLIP(**{**config, **small})
    with torch.device("meta"):
        whole = CustomTextCLIP(**config)
    if not image:
        network.visual = whole.visual
    if not text:
        network.text = whole.text
    return network


def _check_published(file: Path) -> None:
    expected = PUBLISHED.get(file.name)
    if expected is None:
        return
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != expected:
        raise BackboneError(
            f"{file} has the name of OpenAI's file but other content (sha256 {digest[:12]}… instead of "
            f"{expected[:12]}…): get it again, or rename it if it is another one"
        )


def _read_files(file: Path, left_out: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors of a file of weights, or of those that an index of transformers names."""
    if file.suffix != ".json":
        return read_checkpoint(file, without=left_out)
    try:
        names = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{file} is damaged: get it again ({error!r})") from error
    return {
        key: value for name in names for key, value in read_checkpoint(file.parent / name, without=left_out).items()
    }


@contextmanager
def backbone_errors() -> Iterator[None]:
    """Turn a TensorsError inside the block into a BackboneError."""
    try:
        yield
    except TensorsError as error:
        raise BackboneError(str(error)) from error


@backbone_errors()
def put_weights(model: CustomTextCLIP, file: Path, *, name: str, image: bool = True, text: bool = True) -> None:
    """Load a file of weights; position embeddings of another image size are interpolated, as open_clip does.

    Args:
        model: Filled in place.
        file: safetensors, a torch checkpoint, a TorchScript archive, or big_vision's `.npz`; also the weights of a
            CLIPModel of transformers, or the index of their files.
        name: Of the model, for messages.
        image, text: Whether to fill the tower; otherwise its weights are not read.

    Raises:
        BackboneError: The file cannot be read, is of another architecture, or has the name of a published file and
            other content.
    """
    if file.suffix == ".npz":
        from open_clip.convert import load_big_vision_weights

        try:
            load_big_vision_weights(model, str(file))
        # a damaged file, or one of another architecture: numpy and open_clip raise anything
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise BackboneError(
                f"{file} cannot be read as big_vision weights of {name}: get it again, or name the model it was saved "
                f"from ({type(error).__name__}: {reason})"
            ) from error
        return
    left_out = (*(() if image else IMAGE), *(() if text else TEXT))
    _check_published(file)
    state = _read_files(file, left_out)
    if is_named_by_transformers(state):
        state = {key: value for key, value in rename_weights(state).items() if not key.startswith(left_out)}
    for beside in (*OPENAI_SIZES, *MASKS):
        state.pop(beside, None)
    state = convert_to_custom_text_state_dict(convert_state_dict(model, state))
    state = {key: value for key, value in state.items() if not key.startswith("text_decoder.")}  # CoCa's
    for scalar in ("logit_scale", "logit_bias"):
        parameter = getattr(model, scalar)
        if parameter is not None and scalar in state:
            state[scalar] = state[scalar].reshape(parameter.shape)
    if model.logit_bias is not None:
        state.setdefault("logit_bias", torch.zeros_like(model.logit_bias))
    state.pop("text.transformer.embeddings.position_ids", None)  # written by transformers before 4.31
    positions = "text.positional_embedding"
    for key in ("visual.positional_embedding", positions):
        if key in state:
            state[key] = state[key].float()  # CPUs do not interpolate half precision
    resize_pos_embed(state, model)
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(left_out)}
    if positions in state and positions in own and state[positions].shape[1] == own[positions].shape[1]:
        resize_text_pos_embed(state, model)
    check_fit(own, state, source=file, called=name)
    model.load_state_dict(state, strict=not left_out)
