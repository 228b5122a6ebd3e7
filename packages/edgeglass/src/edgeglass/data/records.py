"""Records that every format is read into: samples with their modalities, conversations, and whole sets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar


class Blob(Protocol):
    """An image or a sound inside a file of many, such as a parquet file: read again each time, never kept.

    It is picklable and hashable, and `read` may be called from several threads at once.
    """

    @property
    def name(self) -> str:
        """Place of the bytes, for messages."""

    def read(self) -> bytes:
        """Return the encoded image or sound.

        Raises:
            OSError: The file cannot be read.
        """


Source = Path | Blob
"""Where an image or a sound is read from; one of the sources of `clip_common.features`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, its captions and its sound; one or two of the three may be absent.

    Attributes:
        id: Position in the whole set, stable for a given set of files.
        name: Name for messages: the image or the sound as the set names it, or the place of the row.
        split: `train`, `val` or `test`; "" while none is known.
        captions: Stripped, in the order of the set; empty if there is no text.
        image: File or bytes of the image.
        audio: File or bytes of the sound.
    """

    id: int
    name: str
    split: str = ""
    captions: tuple[str, ...] = ()
    image: Source | None = None
    audio: Source | None = None

    def has(self, modality: str) -> bool:
        """Return whether the sample has an `image`, a `text` or an `audio`."""
        return modality in self.modalities

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the sample, in the order of `config.MODALITIES`."""
        present = {"image": self.image is not None, "text": bool(self.captions), "audio": self.audio is not None}
        return tuple(modality for modality, is_present in present.items() if is_present)

    @property
    def sources(self) -> dict[str, Source]:
        """The image and the sound by modality."""
        given = {"image": self.image, "audio": self.audio}
        return {modality: source for modality, source in given.items() if source is not None}


@dataclass(frozen=True, slots=True)
class Samples:
    """A set as loaded.

    Attributes:
        root: The file or folder that it was read from.
        format: Name of its format, one of `formats.FORMATS`.
        splits: `train`, `val` and `test` → samples, ordered by id.
        problems: One line for each image, sound or caption that was left out under `on_error=skip`.
        skipped: Number of images and sounds among them.
        unlisted: Number of samples without a split, when other samples have one. They are in no split.
    """

    root: Path
    format: str
    splits: dict[str, list[Sample]]
    problems: list[str] = field(default_factory=list)
    skipped: int = 0
    unlisted: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: Stripped, without a placeholder of the image.
        answer: The answer to train on.
        answers: All right answers, for scoring: those of ten people, or all captions of the image. Empty: `answer` is
            the only one.
        type: Type of the question, such as `count`; "" if the set states none.
    """

    question: str
    answer: str
    answers: tuple[str, ...] = ()
    type: str = ""

    @property
    def references(self) -> tuple[str, ...]:
        """All right answers, at least one."""
        return self.answers or (self.answer,)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One or several turns about an image, or about none.

    Attributes:
        id: Position in the whole set, stable for a given set of files.
        name: Name for messages: the image as the set names it, or the place of the row.
        split: `train`, `val` or `test`; "" while none is known.
        image: File or bytes of the image; None for text alone.
        turns: At least one.
    """

    id: int
    name: str
    split: str
    image: Source | None
    turns: tuple[Turn, ...]

    @property
    def sources(self) -> dict[str, Source]:
        """The image as {"image": …}; empty for text alone."""
        return {} if self.image is None else {"image": self.image}


Record = TypeVar("Record", Sample, Conversation)
"""What has a name, a split and sources."""
