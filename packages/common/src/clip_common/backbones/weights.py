"""Files of weights into an open_clip model, with one clear line for whatever does not fit. No pickle is executed."""

from pathlib import Path

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    CustomTextCLIP,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from safetensors import safe_open
from torch import Tensor

from clip_common.backbones.spec import BackboneError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the weights in their checkpoints."""
TEXT = ("text.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
"""How names of text weights begin, in a tower of its own or in OpenAI's flat layout."""


def read_weights(file: Path, *, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Tensors of a safetensors file or a torch checkpoint (`weights_only`), unwrapped.

    Args:
        file: Where they are.
        without: Beginnings of names that are left out; of a safetensors file they are not even read.

    Raises:
        BackboneError: Absent, truncated, or not a file of weights.
    """
    if not file.is_file():
        raise BackboneError(f"{file}: no such file of weights")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stored:
                content = {name: stored.get_tensor(name) for name in stored.keys() if not name.startswith(without)}  # noqa: SIM118
        else:
            content = torch.load(file, "cpu", weights_only=True)
    # what torch raises for a damaged file ranges from KeyError to UnpicklingError
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise BackboneError(
            f"{file} cannot be read as weights, it is truncated or of another format: get it again ({reason})"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise BackboneError(
            f"{file} holds no weights: expected tensors by name, or a dict with them in {WRAPPERS[0]!r}"
        )
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.startswith(without)}


def put_weights(model: CustomTextCLIP, file: Path, *, name: str, text: bool = True) -> None:
    """Load a file of weights; position embeddings of another image size are interpolated, as open_clip does.

    Args:
        model: Filled in place.
        file: safetensors, a torch checkpoint, or big_vision's `.npz`.
        name: What the model is called in messages.
        text: Whether the text tower is filled too; its weights are not read otherwise.

    Raises:
        BackboneError: The file cannot be read, or is of another architecture.
    """
    if file.suffix == ".npz":
        from open_clip.convert import load_big_vision_weights

        try:
            load_big_vision_weights(model, str(file))
        # a damaged file, or one of another architecture: numpy's and open_clip's errors are of any kind
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise BackboneError(
                f"{file} cannot be read as big_vision weights of {name}: get it again, or name the model it was saved "
                f"from ({type(error).__name__}: {reason})"
            ) from error
        return
    state = read_weights(file, without=() if text else TEXT)
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
            state[key] = state[key].float()  # weights in half precision: CPUs do not interpolate those
    resize_pos_embed(state, model)
    own = {key: value for key, value in model.state_dict().items() if text or not key.startswith("text.")}
    if positions in state and positions in own and state[positions].shape[1] == own[positions].shape[1]:
        resize_text_pos_embed(state, model)
    require_fit(own, state, file=file, name=name)
    model.load_state_dict(state, strict=text)


def require_fit(own: dict[str, Tensor], state: dict[str, Tensor], *, file: Path, name: str) -> None:
    """Raise BackboneError unless names and shapes agree."""
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [key for key in sorted(own.keys() & state.keys()) if own[key].shape != state[key].shape]
    wrong = [f"{len(keys)} {what} ({keys[0]}…)" for what, keys in (("missing", missing), ("foreign", foreign)) if keys]
    if shapes:
        first = f"{shapes[0]} is {tuple(state[shapes[0]].shape)}, expected {tuple(own[shapes[0]].shape)}"
        wrong.append(f"{len(shapes)} of another shape ({first})")
    if wrong:
        raise BackboneError(
            f"{file} does not fit {name}, its tensors are of another architecture: {', '.join(wrong)}; "
            "name the model it was saved from"
        )
