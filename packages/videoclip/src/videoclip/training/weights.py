"""Published weights of torchvision's video networks, loaded into a model before it is trained."""

from pathlib import Path

from torch import nn

from clip_common.tensors import load_state, read_checkpoint
from videoclip.models.encoders import TorchvisionEncoder


def load_torchvision_weights(encoder: nn.Module, file: Path) -> None:
    """Load a network's weights in place, all but those of its classifier, which `encoder` replaces by its own.

    Args:
        encoder: A `TorchvisionEncoder`.
        file: A .safetensors file, or a .pth file as torchvision publishes them.

    Raises:
        ValueError: The file cannot be read, or holds the weights of another network.
    """
    assert isinstance(encoder, TorchvisionEncoder)  # ModelConfig refuses weights for other encoders
    weights = read_checkpoint(file, without=("fc.",))
    own = {name: tensor for name, tensor in encoder.network.state_dict().items() if name.startswith("fc.")}
    load_state(encoder.network, weights | own, source=file, called=encoder.name)
