"""What the towers attend to in cross-attention: one image context and one text context for each class.

Shapes: B images, G classes, L patches, D shared width, N tokens of a class's prompts, F width of the text tower.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


@dataclass
class Contexts:
    """The contexts of a trained model, in the precision in which they are stored (`round_half`).

    Attributes:
        image: (L, D) by class (`normalise_class`) of the training set; its prompts attend to it.
        text: (N, F) by class; its images attend to it.
    """

    image: dict[str, Tensor] = field(default_factory=dict)
    text: dict[str, Tensor] = field(default_factory=dict)

    def image_of(self, name: str) -> Tensor:
        """Return the image context (L, D) of a class; of one that was not trained on, the mean of all."""
        return self.image[name] if name in self.image else torch.stack(list(self.image.values())).mean(dim=0)

    def to(self, device: torch.device) -> "Contexts":
        """Return the same on a device."""
        both = ({name: context.to(device) for name, context in one.items()} for one in (self.image, self.text))
        return Contexts(*both)


class TextContexts(NamedTuple):
    """The text context of each image of a batch.

    Attributes:
        tokens_GNF: Of the classes in the batch, padded to the longest.
        mask_GN: True on tokens, False on padding; None: nothing is padded.
        rows_B: Class of each image, as a row of `tokens_GNF`; None: all images are of one class.
    """

    tokens_GNF: Tensor
    mask_GN: Tensor | None = None
    rows_B: Tensor | None = None

    @classmethod
    def of(cls, contexts: Mapping[str, Tensor], names: Sequence[str]) -> "TextContexts":
        """Gather the contexts of a batch.

        Args:
            contexts: (N, F) by name.
            names: Of the class of each image; one name stands for any number of images.
        """
        unique = list(dict.fromkeys(names))
        parts = [contexts[name] for name in unique]
        if len(unique) == 1:
            return cls(parts[0][None])
        device = parts[0].device
        tokens_GNF = pad_sequence(parts, batch_first=True)
        lengths_G = torch.tensor([len(part) for part in parts], device=device)
        mask_GN = torch.arange(tokens_GNF.shape[1], device=device) < lengths_G[:, None]
        return cls(tokens_GNF, mask_GN, torch.tensor([unique.index(name) for name in names], device=device))

    def to(self, device: torch.device) -> "TextContexts":
        """Return the same on a device."""
        mask_GN, rows_B = (None if one is None else one.to(device) for one in self[1:])
        return TextContexts(self.tokens_GNF.to(device), mask_GN, rows_B)


class RunningContexts(nn.Module):
    """The mean image context of each class over a training, as buffers, so that checkpoints hold it.

    Of several ranks, the first one's images count, as for all buffers.

    Args:
        names: Classes.
        patches, width: L and D.
        over: What a class's context is the mean of, in a batch: its own images, or (the fork) all of them.
    """

    mean_GLD: Tensor
    images_G: Tensor

    def __init__(
        self, names: Sequence[str], *, patches: int, width: int, over: Literal["class", "batch"] = "class"
    ) -> None:
        super().__init__()
        self.names, self.over = list(names), over
        self.register_buffer("mean_GLD", torch.zeros(len(names), patches, width))
        self.register_buffer("images_G", torch.zeros(len(names), dtype=torch.long))

    @torch.no_grad()
    def take(self, patches_BLD: Tensor, names: Sequence[str]) -> Tensor:
        """Return the image context (G, L, D) of each class of a batch, in the order of their names; the mean takes it.

        Args:
            patches_BLD: Patches of each image, on any device.
            names: Class of each image.
        """
        patches_BLD = patches_BLD.to(self.mean_GLD)
        contexts = []
        for name in sorted(set(names)):
            own = [row for row, other in enumerate(names) if other == name]
            contexts.append((patches_BLD if self.over == "batch" else patches_BLD[own]).mean(dim=0))
            row = self.names.index(name)
            self.images_G[row] += len(own)
            self.mean_GLD[row].lerp_(contexts[-1], len(own) / self.images_G[row])
        return torch.stack(contexts)

    def stored(self) -> dict[str, Tensor]:
        """Return the mean (L, D) by class; a class of which no image was seen is left out."""
        return {
            name: round_half(mean_LD).cpu()
            for name, mean_LD, images in zip(self.names, self.mean_GLD, self.images_G.tolist(), strict=True)
            if images
        }


def round_half(context: Tensor) -> Tensor:
    """Return float32 values that half precision holds: what is stored is what is computed with."""
    return context.half().float()
