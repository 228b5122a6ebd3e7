"""Loading a file of weights into an open_clip model, with a one-line error for one that does not fit it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    CustomTextCLIP,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)

from clip_common.backbones.spec import BackboneError
from clip_common.tensors import TensorsError, check_fit, read_checkpoint

TEXT = ("text.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
"""Prefixes of the names of text weights, in a separate tower or in OpenAI's flat layout."""


@contextmanager
def backbone_errors() -> Iterator[None]:
    """Turn a TensorsError inside the block into a BackboneError."""
    try:
        yield
    except TensorsError as error:
        raise BackboneError(str(error)) from error


@backbone_errors()
def put_weights(model: CustomTextCLIP, file: Path, *, name: str, text: bool = True) -> None:
    """Load a file of weights; position embeddings of another image size are interpolated, as open_clip does.

    Args:
        model: Filled in place.
        file: safetensors, a torch checkpoint, or big_vision's `.npz`.
        name: Of the model, for messages.
        text: Whether to fill the text tower too; otherwise its weights are not read.

    Raises:
        BackboneError: The file cannot be read, or is of another architecture.
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
    state = read_checkpoint(file, without=() if text else TEXT)
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
    own = {key: value for key, value in model.state_dict().items() if text or not key.startswith("text.")}
    if positions in state and positions in own and state[positions].shape[1] == own[positions].shape[1]:
        resize_text_pos_embed(state, model)
    check_fit(own, state, source=file, called=name)
    model.load_state_dict(state, strict=text)
