"""A trained model, for a person: encode, index a folder of images, search it by words or by an image.

N images, D the shared width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clip_common.backbones import move
from clipse.data import DataError
from clipse.model import RetrievalModel, model_folder
from clipse.reporting import Progress

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Hit:
    """One answer: an image file and its cosine similarity to the query, -1 to 1."""

    path: Path
    similarity: float


class Retriever:
    """Searches images with a trained model.

    Example:
        retriever = Retriever.from_pretrained("runs/clipse/first")
        for hit in retriever.index("photos/").search("a dog in the snow", k=10):
            print(f"{hit.similarity:.3f} {hit.path}")
    """

    def __init__(self, model: RetrievalModel, *, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.eval().to(self.device)
        self.paths: list[Path] = []
        self.gallery_ND = torch.empty(0, 0)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: str | torch.device | None = None) -> "Retriever":
        """Load a run folder (its best weights) or a folder that `save_pretrained` wrote.

        Raises:
            ValueError: Neither, or a damaged one.
        """
        return cls(RetrievalModel.from_pretrained(model_folder(source)), device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model (not the index)."""
        self.model.save_pretrained(folder)

    @torch.inference_mode()
    def encode_image(self, images: Sequence[Image.Image | str | Path], *, batch_size: int = 64) -> Tensor:
        """PIL images or files -> (N, D) unit vectors, float32 on the CPU.

        Raises:
            DataError: A file that is no readable image.
        """
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = [self.model.bundle.preprocess(_open(image)) for image in images[start : start + batch_size]]
            parts.append(self.model.encode_image(torch.stack(pixels).to(self.device)).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Texts -> (N, D) unit vectors, float32 on the CPU."""
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self.model.bundle.tokenizer(list(texts[start : start + batch_size]))
            parts.append(self.model.encode_text(move(tokens, self.device)).cpu())
        return torch.cat(parts)

    def index(self, folder: str | Path, *, batch_size: int = 64, progress: Progress | None = None) -> "Retriever":
        """Encode every image below a folder and keep the vectors for `search`.

        Raises:
            DataError: No such folder, no image in it, or a file that is no readable image.
        """
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: give the folder of images to search")
        self.paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise DataError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))})")
        parts = []
        for start in range(0, len(self.paths), batch_size):
            parts.append(self.encode_image(self.paths[start : start + batch_size], batch_size=batch_size))
            if progress is not None:
                progress(min(start + batch_size, len(self.paths)), len(self.paths))
        self.gallery_ND = torch.cat(parts)
        return self

    def search(self, query: str | Path | Image.Image, k: int = 10) -> list[Hit]:
        """The k most similar images of the index: to words (a str), or to an image (a Path or a PIL image), best first.

        Raises:
            ValueError: Nothing has been indexed.
        """
        if not self.paths:
            raise ValueError("nothing to search: call index(folder) first")
        vector_1D = self.encode_text([query]) if isinstance(query, str) else self.encode_image([query])
        similarity_N = self.gallery_ND @ vector_1D[0]
        best = similarity_N.topk(min(k, len(self.paths)))
        return [
            Hit(self.paths[row], value) for value, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def _open(image: Image.Image | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise DataError(f"{image}: not a readable image ({error})") from error
