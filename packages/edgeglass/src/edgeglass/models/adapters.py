"""Low-rank adapters (peft) in the linear layers of any module: put them in, find them, merge them."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from clip_common.backbones import quiet_bitsandbytes


def list_linear_names(module: nn.Module) -> list[str]:
    """Return the names of the linear layers of a module, without the names of what holds them, sorted."""
    return sorted({name.rpartition(".")[2] for name, part in module.named_modules() if isinstance(part, nn.Linear)})


def inject_adapters(
    module: nn.Module, targets: Sequence[str] | str, *, r: int, alpha: float, dropout: float = 0.0
) -> None:
    """Put adapters into the linear layers of these names; the adapters alone get gradients.

    Args:
        module: Changed in place.
        targets: Names of layers, or `all-linear`, which a language model of transformers takes.
        r: Rank.
        alpha: Scale: the adapters' output is multiplied by alpha / r.
        dropout: Before the adapters, in training.

    Raises:
        ValueError: No layer has one of the names.
    """
    quiet_bitsandbytes()  # peft imports it, and it would warn of kernels that it does not need here
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )
    inject_adapter_in_model(settings, module)


def find_adapted(module: nn.Module) -> dict[str, Any]:
    """Return the layers with adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in module.named_modules() if isinstance(part, BaseTunerLayer)}


def fold_adapters(module: nn.Module) -> None:
    """Merge all adapters of a module into its linear layers, in place.

    Raises:
        ValueError: Adapters that are not finite.
    """
    for name, layer in find_adapted(module).items():
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
