"""Captions, queries and sounds of the procedural world as training examples, with all that they claim.

Shapes: T tokens or frames, C claims, A attributes of a thing, M mel bands.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from clip_common.backbones.mel import Mel
from clip_common.synthetic import Scene, captions, read_caption, render_sound, sample_scene
from clip_common.synthetic.captions import WORDS, add_article, choose, naming_caption
from clip_common.synthetic.question_forms import FORMS
from clip_common.synthetic.scenes import BACKGROUNDS, KINDS, PRETRAINING_SEED, generator
from clip_common.synthetic.sounds import PAUSE, SAMPLE_RATE, SECONDS, in_reading_order

TEXT_LENGTH = 64
"""Longest text in tokens; captions have at most 45."""
BANDS = 48
HOP = 320
"""Samples per frame of a spectrogram: half as many frames as Whisper's, 25 tokens a second."""
WINDOW_SECONDS = 8
POSITIONS = WINDOW_SECONDS * SAMPLE_RATE // (2 * HOP)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class ClaimSet:
    """Columns of claims: each attribute of a thing, each pair of attributes of one thing, and facts about the scene.

    Pairs bind: a scene of a red mug and a blue star claims neither "blue mug" nor "red star".
    """

    def __init__(self, attributes: Sequence[str], facts: Sequence[tuple[Any, ...]]) -> None:
        self.attributes = attributes
        self.values = {name: list(WORDS[name]) for name in attributes}
        singles = [(name, value) for name in attributes for value in self.values[name]]
        pairs = [
            (*one, *other)
            for first, second in itertools.combinations(attributes, 2)
            for one in singles
            for other in singles
            if (one[0], other[0]) == (first, second)
        ]
        self.column = {claim: number for number, claim in enumerate([*singles, *pairs, *facts])}

    def __len__(self) -> int:
        return len(self.column)

    def find(self, things: Sequence[Mapping[str, str]], *facts: tuple[Any, ...]) -> list[int]:
        """Return the columns of the claims of these things, and of these facts."""
        claims = set(facts)
        for thing in things:
            named = [(name, thing[name]) for name in self.attributes if name in thing]
            claims |= {*named, *((*one, *other) for one, other in itertools.combinations(named, 2))}
        return [self.column[claim] for claim in claims]

    def rows(self, found: Sequence[Sequence[int]]) -> Tensor:
        """Return (B, C): 1 at the columns of each row, 0 elsewhere."""
        rows_BC = torch.zeros(len(found), len(self))
        for row_C, columns in zip(rows_BC, found, strict=True):
            row_C[list(columns)] = 1
        return rows_BC


COUNTS = [("count", number) for number in range(1, 5)]
SEEN = ClaimSet(
    ("kind", "colour", "size", "texture", "place"), [*COUNTS, *(("background", one) for one in BACKGROUNDS)]
)
"""Claims of captions and of scenes."""
HEARD = ClaimSet(("kind", "colour", "size"), [*COUNTS, *((turn, kind) for turn in range(4) for kind in KINDS)])
"""Claims of sounds, among them the kind of the first, second, third and fourth thing."""


@dataclass
class Example:
    """One input of an encoder, with all that it is to tell.

    Attributes:
        tensor: Token numbers (T,) of a text, or spectrogram (M, T) of a sound.
        tokens: Number of the encoder's tokens that are not padding.
        claims: Columns of the claims that the input makes.
        scene: Columns of all claims of its scene; None for a query, which fits many scenes.
        places: Numbers of the tokens that belong to a thing.
        things: (places, A) values of the attributes of their things; -100 for an attribute that is not named.
    """

    tensor: Tensor
    tokens: int
    claims: list[int]
    scene: list[int] | None
    places: list[int]
    things: Tensor


def make_query(scene: Scene) -> str:
    """Return a text as people search: the things by name, or one of them with few of its attributes."""
    random = generator("query", seed=scene.seed, index=scene.index)
    if random.random() < 0.3:
        return naming_caption(scene)
    thing = asdict(scene.things[int(random.integers(len(scene.things)))])
    named = [name for name in ("size", "texture", "colour") if random.random() < 0.4]
    words = [*(choose(WORDS[name][thing[name]], random) for name in named), thing["kind"]]
    if random.random() < 0.2:
        words.append(choose(WORDS["place"][thing["place"]], random))
    return ("a photo of " if random.random() < 0.15 else "") + add_article(" ".join(words))


def make_tokenizer() -> Any:
    """Return a lower-case tokenizer of whole words: those of captions, questions and answers."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.Split(Regex(r"[\w-]+|[^\w\s]"), "removed", invert=True)
    texts = [text for index in range(2000) for text in captions(sample_scene(PRETRAINING_SEED, index))]
    texts += [word for form in FORMS for word in (re.sub(r"\{\w+\}", "", form.text), *form.answers)]
    known = {word for text in [*texts, "a photo of an"] for word, _ in splitter.pre_tokenize_str(text)}
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *sorted(known)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = splitter
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=TEXT_LENGTH, **names)


def draw_texts(scenes: Sequence[Scene], tokenizer: Any, *, queries: bool) -> list[list[Example]]:
    """Return the captions of each scene, and a query if wanted."""
    kinds = set(tokenizer.convert_tokens_to_ids(list(KINDS)))
    examples = []
    for scene in scenes:
        row = asdict(scene)
        all_claims = SEEN.find(row["things"], ("count", len(scene.things)), ("background", scene.background))
        texts = [(text, all_claims) for text in captions(scene)] + [(make_query(scene), None)] * queries
        own = []
        for text, claims in texts:
            said = read_caption(text)
            grounds = [] if said.background is None else [("background", said.background)]
            ids = tokenizer(text)["input_ids"]
            own.append(
                Example(
                    tensor=torch.tensor(ids),
                    tokens=len(ids),
                    claims=SEEN.find(said.things, ("count", len(said.things)), *grounds),
                    scene=claims,
                    places=[at for at, number in enumerate(ids) if number in kinds],
                    things=list_values(SEEN, said.things),
                )
            )
        examples.append(own)
    return examples


def list_values(claims: ClaimSet, things: Sequence[Mapping[str, str]]) -> Tensor:
    """Return (things, A) numbers of the values of their attributes; -100 for one that is not named."""
    return torch.tensor(
        [[own.index(thing[name]) if name in thing else -100 for name, own in claims.values.items()] for thing in things]
    )


def make_extractor() -> Any:
    """Return the extractor of spectrograms."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=BANDS, hop_length=HOP, n_fft=2 * HOP, chunk_length=WINDOW_SECONDS)


def draw_sounds(scenes: Sequence[Scene], extractor: Any) -> list[list[Example]]:
    """Return the sound of each scene, followed by a second of silence."""
    mel = Mel(extractor, positions=POSITIONS, context="sound")
    examples = []
    for scene in scenes:
        samples_T = torch.from_numpy(render_sound(scene))
        segments = mel(samples_T)
        things = in_reading_order(scene)
        claims = HEARD.find(
            [asdict(thing) for thing in things],
            ("count", len(things)),
            *((turn, thing.kind) for turn, thing in enumerate(things)),
        )
        places, owners = time_things([SECONDS[thing.size] for thing in things], tokens=segments.frames[0])
        values = list_values(HEARD, [asdict(thing) for thing in things])[owners]
        examples.append([Example(segments.mels[0], segments.frames[0], claims, claims, places, values)])
    return examples


def time_things(seconds: Sequence[float], *, tokens: int) -> tuple[list[int], list[int]]:
    """Return the tokens in the middle half of each thing, and the number of its thing for each.

    Lengths vary a little, so the nominal ones are stretched to the sound, and the edges of things are left out.
    """
    starts = list(itertools.accumulate((length + PAUSE for length in seconds), initial=0.0))
    rate = tokens / (starts[-1] - PAUSE)
    found = [
        (token, number)
        for number, (start, length) in enumerate(zip(starts, seconds, strict=False))
        for token in range(round(rate * (start + length / 4)), round(rate * (start + length * 3 / 4)))
    ]
    return [token for token, _ in found], [number for _, number in found]
