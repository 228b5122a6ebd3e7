"""A trained detector: an image and a noun in; a verdict, a score, a heatmap, a mask and boxes out.

    from aaclip import Detector

    detector = Detector.from_pretrained("runs/aaclip/first")
    found = detector.predict("part.jpg", name="metal nut")

Shapes: B images, D shared width, S pixels of the model's input, H and W of a picture.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit
from torch import Tensor

from aaclip.config import BackboneConfig, Config
from aaclip.data.augment import squash
from aaclip.detector.calibration import Logistic, Threshold
from aaclip.detector.detection import Detection, Verdict
from aaclip.detector.files import Stored, load_trained, read_detector, trained_state, write_detector
from aaclip.detector.memory import Memory
from aaclip.detector.regions import find_regions
from aaclip.detector.scorer import Scorer, Scores
from aaclip.detector.tiling import Window, blend_tiles, list_windows, resize_map
from aaclip.models import AnomalyModel, PlainCLIP
from aaclip.models.backbone import load_backbone, make_model, make_preprocess
from aaclip.models.contexts import Contexts, TextContexts
from aaclip.models.prompts import PromptSet, embed_classes, load_prompts
from clip_common.backbones import fingerprint
from clip_common.backbones.preprocess import Preprocess
from clip_common.images import find_images, read_image, to_rgb
from clip_common.tensors import check_fingerprint

UNFITTED = Logistic(a=50.0, b=0.5, c=0.0)
"""Image score before any fit: half the image's own logit plus half the mean of the map's hottest hundredth."""

Picture = str | Path | Image.Image
"""A file, or an opened picture."""


class Detector:
    """A scorer with class embeddings, a threshold, and a folder to be saved in.

    Args:
        model: In eval mode from here on.
        config: Of its training, or of plain CLIP.
        classes: Embeddings (D, 2) that are known already, by what the thing is called.
        score: From classification and map to one number; None: unfitted.
        threshold: Of the score; None: no verdicts.
        border: Logit difference of a map from which a pixel counts as part of a defect.
        memories: Remembered normal images, by what they show; see `remember`.
        contexts: What prompts and images attend to; None without cross-attention.
        fingerprints: Of the backbone's `image` and `text` tower if the text tower is not loaded; None: computed.
        name: What reports call it; default: the run's name or the backbone's.
    """

    def __init__(
        self,
        model: AnomalyModel | PlainCLIP,
        config: Config,
        *,
        classes: Mapping[str, Tensor] | None = None,
        score: Logistic | None = None,
        threshold: Threshold | None = None,
        border: float = 0.0,
        memories: Mapping[str, Memory] | None = None,
        contexts: Contexts | None = None,
        fingerprints: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.score = score or UNFITTED
        self.classes = dict(classes or {})
        self.threshold = threshold
        self.border = border
        self.memories = dict(memories or {})
        self.contexts = contexts
        model.check_contexts(contexts, at_test=config.cross_attention.at_test)
        self.name = name or config.name or config.backbone.name
        self._fingerprints = dict(fingerprints or {})

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Detector":
        """Load a run's detector, or a folder that `save_pretrained` wrote.

        The text tower is loaded when a new name is first asked for.

        Raises:
            ValueError: One line: no such folder, a run without a model yet, damaged files, or another backbone.
        """
        source = Path(source)
        stored = read_detector(source)
        backbone = stored.config.backbone
        bundle = load_backbone(backbone, text=False)
        check_fingerprint(
            fingerprint(bundle.image_tower),
            stored.fingerprints["image"],
            source=source,
            what=f"an image tower {backbone.name}",
        )
        model = make_model(bundle, stored.config)
        load_trained(model, stored.state, source=source)
        return cls(
            model,
            stored.config,
            classes=stored.classes,
            score=stored.score,
            threshold=stored.threshold,
            border=stored.border,
            memories=stored.memories,
            contexts=stored.contexts,
            fingerprints=stored.fingerprints,
            name=source.name,
        )

    @classmethod
    def plain(cls, backbone: BackboneConfig | str = "tiny", *, config: Config | None = None) -> "Detector":
        """Load CLIP without any adapter, with the same prompts and maps: what training must beat."""
        config = config or Config()
        if isinstance(backbone, str):
            backbone = BackboneConfig(name=backbone, pretrained=None, activation=None, image_size=None)
        config = replace(config, backbone=backbone)
        model = PlainCLIP(load_backbone(backbone), levels=config.levels)
        return cls(model, config, name=Path(backbone.name).name)

    @classmethod
    def open(cls, source: str | Path) -> "Detector":
        """Load a run or a saved detector, or plain CLIP if `source` is the name of a CLIP and not a folder."""
        return cls.from_pretrained(source) if Path(source).is_dir() else cls.plain(str(source))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write everything but the CLIP: trained weights, memories, class embeddings, score and threshold."""
        assert isinstance(self.model, AnomalyModel)
        folder = Path(folder)
        stored = Stored(
            config=self.config,
            state=trained_state(self.model),
            fingerprints=self.fingerprints,
            classes=self.classes,
            score=self.score,
            border=self.border,
            threshold=self.threshold,
            memories=self.memories,
            contexts=self.contexts,
        )
        write_detector(folder, stored)
        return folder

    @property
    def scorer(self) -> Scorer:
        """The computation as one module, with the score and the configuration of now."""
        return Scorer(self.model, logistic=self.score, domain=self.config.score.domain).eval()

    @cached_property
    def prompts(self) -> PromptSet:
        """States and templates of the prompts."""
        return load_prompts(self.config.prompts)

    @property
    def size(self) -> int:
        """S."""
        return self.model.bundle.image.spec.image_size

    @property
    def preprocess(self) -> Preprocess:
        """From an RGB picture to the model's input: squashed to a square, normalised."""
        return make_preprocess(self.model.bundle, self.config.preprocess)

    @property
    def fingerprints(self) -> dict[str, str]:
        """sha256 of the weights of the backbone's `image` and `text` tower."""
        return self._fingerprints or {
            "image": fingerprint(self.model.image_tower),
            "text": fingerprint(self.model.text_tower),
        }

    @torch.inference_mode()
    def class_embedding(
        self, name: str, *, states: tuple[Sequence[str], Sequence[str]] | None = None, templates: Sequence[str] = ()
    ) -> Tensor:
        """Return the (D, 2) normal and abnormal embedding of a thing.

        Args:
            name: A noun, or a class of the training set.
            states: Normal and abnormal states instead of the prompt set's, `{}` for the name.
            templates: Instead of the prompt set's, `{}` for a state.
        """
        own = states is not None or bool(templates)
        called = self.prompts.name_of(name)
        if not own and called in self.classes:
            return self.classes[called].to(self.model.device)
        prompts = self.prompts
        if states is not None:
            prompts = replace(prompts, normal=tuple(states[0]), abnormal=tuple(states[1]))
        if templates:
            prompts = replace(prompts, templates=tuple(templates))
        self._load_text_tower()
        encode = self.model.encode_text
        if self.contexts is not None:
            assert isinstance(self.model, AnomalyModel)
            encode = partial(self.model.encode_text, contexts_GLD=self.contexts.image_of(called)[None])
            if not own:
                self.contexts.text[called] = self.model.read_text_context(prompts.list_all(called))
        embedding = embed_classes(encode, [called], prompts)[0].float()
        if not own:
            self.classes[called] = embedding
        return embedding

    def text_contexts(self, names: Sequence[str]) -> TextContexts | None:
        """Return what the images of a batch attend to; None without cross-attention.

        Args:
            names: What each image shows; one name stands for any number of images.
        """
        if self.contexts is None:
            return None
        for name in set(names):
            self.class_embedding(name)  # reads the context of a new name too
        called = [self.prompts.name_of(name) for name in names]
        return TextContexts.of(self.contexts.text, called).to(self.model.device)

    def _load_text_tower(self) -> None:
        """Load the text tower if it was left out; stored embeddings do not need it."""
        if not any(weight.is_meta for weight in self.model.text_tower.parameters()):
            return
        backbone = self.config.backbone
        bundle = load_backbone(backbone)
        check_fingerprint(
            fingerprint(bundle.text_tower),
            self._fingerprints["text"],
            source=self.name,
            what=f"a text tower {backbone.name}",
        )
        self.model.take_text(bundle)

    @torch.inference_mode()
    def scores(
        self,
        images_B3SS: Tensor,
        text_BD2: Tensor,
        *,
        memory: Memory | None = None,
        context: TextContexts | None = None,
    ) -> Scores:
        """Score preprocessed images.

        Args:
            images_B3SS: Preprocessed.
            text_BD2: Embedding of the class of each.
            memory: Remembered normal images of their class; what differs from them is hotter in the maps.
            context: Of the class of each (`text_contexts`).
        """
        assert (context is None) == (self.contexts is None)
        device = self.model.device
        levels = [] if memory is None else memory.levels
        scores: Scores = self.scorer(images_B3SS.to(device), text_BD2.to(device), levels, context)
        return scores

    @torch.inference_mode()
    def remember(self, images: Iterable[Picture], *, name: str) -> None:
        """Remember a few normal pictures of a thing, without training; earlier ones of that thing are replaced.

        The threshold is cleared, because scores of this thing change.

        Args:
            images: Normal pictures.
            name: What they show, as it will be named in `predict`.

        Raises:
            ValueError: No picture.
            DataError: A file that is not a picture.
        """
        context = self.text_contexts([name])
        plain, mirrored = [], []
        for picture in map(open_picture, images):
            both = (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
            images_2B3SS = torch.stack([self.tensor_of(one) for one in both]).to(self.model.device)
            features = self.model.features(images_2B3SS, context)
            plain.append([level_2LD[0] for level_2LD in features.levels])
            mirrored.append([level_2LD[1] for level_2LD in features.levels])
        if not plain:
            raise ValueError(f"no normal picture of {name} to remember: give one or more")
        by_level = [[torch.stack(level) for level in zip(*images, strict=True)] for images in (plain, mirrored)]
        self.memories[self.prompts.name_of(name)] = Memory.from_patches(*by_level)
        self.threshold = None

    def memory_of(self, name: str) -> Memory | None:
        """Return the remembered images of a thing, or None."""
        return self.memories.get(self.prompts.name_of(name))

    def tensor_of(self, picture: Image.Image) -> Tensor:
        """Return the (3, S, S) model input of an RGB picture."""
        return self.preprocess(squash(picture, None, side=self.size)[0])

    def predict(
        self,
        images: Picture | Iterable[Picture],
        *,
        name: str,
        threshold: float | None = None,
        tile: int | None = None,
        batch_size: int = 8,
    ) -> "Detection | list[Detection]":
        """Look for defects.

        Args:
            images: A picture or a file, several of them, or a folder.
            name: What they show: any noun.
            threshold: Of the score, instead of the detector's own.
            tile: Look at overlapping tiles of this side, in pixels of the picture. Each is scaled to the model's input
                alone, so that small defects of a large picture are not lost. The picture's score is that of its worst
                tile. None: the picture as a whole.
            batch_size: Pictures or tiles at a time; changes no result.

        Returns:
            One Detection for one picture, a list for several.

        Raises:
            DataError: A file that is not a picture, a folder without pictures.
            ValueError: A tile below 16 pixels, or another one than the threshold was calibrated with.
        """
        if isinstance(images, Image.Image) or (isinstance(images, (str, Path)) and not Path(images).is_dir()):
            return next(self.predictions([images], name=name, threshold=threshold, tile=tile, batch_size=batch_size))
        several: Iterable[Picture] = find_images([images]) if isinstance(images, (str, Path)) else images
        return list(self.predictions(several, name=name, threshold=threshold, tile=tile, batch_size=batch_size))

    def predictions(
        self,
        images: Iterable[Picture],
        *,
        name: str,
        threshold: float | None = None,
        tile: int | None = None,
        batch_size: int = 8,
    ) -> Iterator[Detection]:
        """Yield what `predict` returns, one by one, so that a large folder takes no more memory than a batch."""
        limit = self.choose_threshold(threshold, tile=tile)
        self.class_embedding(name)
        pending = iter(images)
        if tile is None:
            while pictures := [open_picture(one) for one in islice(pending, batch_size)]:
                whole = [(picture, Window(0, 0, *picture.size)) for picture in pictures]
                for (_, window), (map_SS, score) in zip(whole, self._look(whole, name), strict=True):
                    yield self._detection(resize_map(map_SS, window), score, limit)
            return
        for picture in map(open_picture, pending):
            width, height = picture.size
            tiles = [(picture, window) for window in list_windows(width=width, height=height, tile=tile)]
            maps, scores = [], []
            for start in range(0, len(tiles), batch_size):
                batch = tiles[start : start + batch_size]
                for (_, window), (map_SS, score) in zip(batch, self._look(batch, name), strict=True):
                    maps.append((window, resize_map(map_SS, window)))
                    scores.append(score)
            yield self._detection(blend_tiles(maps, width=width, height=height), max(scores), limit)

    def _look(self, places: Sequence[tuple[Image.Image, Window]], name: str) -> list[tuple[NDArray[np.float32], float]]:
        """Return the map (S, S) and the score of each place, in one batch."""
        images_B3SS = torch.stack([self.tensor_of(picture.crop(window)) for picture, window in places])
        text_BD2 = self.class_embedding(name).expand(len(places), -1, -1)
        context = self.text_contexts([name])
        scores = self.scores(images_B3SS, text_BD2, memory=self.memory_of(name), context=context)
        return list(zip(scores.maps_BSS.cpu().numpy(), scores.scores_B.tolist(), strict=True))

    def choose_threshold(self, threshold: float | None, *, tile: int | None) -> Threshold | None:
        """Return the threshold for verdicts: the given one, else the detector's own.

        Raises:
            ValueError: The detector's own was calibrated with other tiles.
        """
        if threshold is not None:
            return Threshold(threshold, method="given", tile=tile)
        if self.threshold is not None and self.threshold.tile != tile:
            raise ValueError(
                f"the threshold was calibrated with tile={self.threshold.tile}, not {tile}: calibrate again, or give "
                "a threshold"
            )
        return self.threshold

    def _detection(self, map_HW: NDArray[np.float32], score: float, limit: Threshold | None) -> Detection:
        # after tiles were blended at the picture's size, so not a part of the scorer
        heatmap_HW = expit(map_HW - np.float32(self.border))
        mask_HW = heatmap_HW > 0.5
        verdict: Verdict | None = None
        if limit is not None:
            verdict = "anomalous" if score >= limit.value else "normal"
        return Detection(score, verdict, heatmap_HW, mask_HW, find_regions(mask_HW, heatmap_HW, least=4))


def open_picture(source: Picture) -> Image.Image:
    """Return an RGB picture, from a file or from an opened picture."""
    return to_rgb(source) if isinstance(source, Image.Image) else read_image(Path(source))
