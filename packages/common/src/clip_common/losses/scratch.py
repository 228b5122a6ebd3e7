"""Memory of a tile's size, used again from tile to tile: fresh pages cost more than a pass over them."""

import math

from torch import Tensor


class Scratch:
    """Buffers by name; what was taken under a name is gone when the name is taken again."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape."""
        count = math.prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < count:
            self._buffers[name] = self._like.new_empty(count)
        return self._buffers[name][:count].view(shape)
