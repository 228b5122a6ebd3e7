"""Buffers the size of a tile, reused from tile to tile: allocating fresh pages costs more than a pass over them."""

import math
import threading

from torch import Tensor


class Scratch:
    """Named buffers; taking a name again invalidates what was taken under it before."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return an uninitialised tensor of this shape."""
        count = math.prod(shape)
        if name not in self._buffers or len(self._buffers[name]) < count:
            self._buffers[name] = self._like.new_empty(count)
        return self._buffers[name][:count].view(shape)


class Scratches:
    """A `Scratch` for each thread."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._here = threading.local()

    def here(self) -> Scratch:
        """Return the calling thread's own."""
        if not hasattr(self._here, "scratch"):
            self._here.scratch = Scratch(self._like)
        scratch: Scratch = self._here.scratch
        return scratch
