"""A trained model for a person: an image and a noun in, a verdict, a score, a heatmap, a mask and boxes out.

    from aaclip import Detector

    detector = Detector.from_pretrained("runs/aaclip/first")
    found = detector.predict("part.jpg", name="metal nut")

Shapes: B images, D shared width, S pixels of the model's input, H and W of a picture.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit
from torch import Tensor

from aaclip.config import BackboneConfig, Config
from aaclip.data import as_rgb, read_image
from aaclip.data.augment import squash
from aaclip.data.pictures import files_of
from aaclip.detector.calibration import Logistic, Threshold, top_mean
from aaclip.detector.detection import Detection, Scores
from aaclip.detector.files import (
    CONFIG,
    DETECTOR,
    MEMORY,
    WEIGHTS,
    described,
    load_trained,
    model_folder,
    read_memories,
    read_tensors,
    trained_state,
    write_memories,
    write_tensors,
)
from aaclip.detector.memory import Memory
from aaclip.detector.regions import find_regions
from aaclip.detector.tiling import Window, blend_tiles, list_windows
from aaclip.models import AnomalyModel, Evidence, PlainCLIP
from aaclip.models.backbone import load_backbone, make_preprocess, require_same
from aaclip.models.maps import anomaly_map, mean_level
from aaclip.models.prompts import PromptSet, embed_classes, prompt_set
from clip_common.backbones import fingerprint
from clip_common.backbones.preprocess import Preprocess
from clip_common.config import load_config, to_yaml
from clip_common.runs import write_json
from clip_common.runs.files import write_text

DEFAULT_SCORE = Logistic(a=50.0, b=0.5, c=0.0)
"""Before any fit: half the image's own logit and half the map's hottest hundredth."""

Source = str | Path | Image.Image


class Detector:
    """A model, class embeddings, a fitted image score and a threshold.

    Args:
        model: In eval mode from here on.
        config: Of its training, or of plain CLIP.
        classes: Embeddings (D, 2) that are known already, by what the thing is called.
        score: From classification and map to one number; None: unfitted.
        threshold: Of the score; None: no verdicts.
        border: Logit difference of a map from which a pixel counts as part of a defect.
        memories: Normal images that are remembered, by what they show; see `remember`.
        fingerprints: Of the backbone's `image` and `text` tower, where its text tower is not loaded; None: as they are.
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
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.classes = dict(classes or {})
        self.score = score or DEFAULT_SCORE
        self.threshold = threshold
        self.border = border
        self.memories = dict(memories or {})
        self._fingerprints = dict(fingerprints or {})

    @cached_property
    def prompts(self) -> PromptSet:
        """What is said about a class."""
        return prompt_set(self.config.prompts.set)

    @property
    def size(self) -> int:
        """S."""
        return self.model.bundle.image.spec.image_size

    @property
    def preprocess(self) -> Preprocess:
        """An RGB picture to the model's input: squashed to a square, normalised."""
        return make_preprocess(self.model.bundle, self.config.preprocess)

    @torch.inference_mode()
    def class_embedding(
        self, name: str, *, states: tuple[Sequence[str], Sequence[str]] | None = None, templates: Sequence[str] = ()
    ) -> Tensor:
        """(D, 2) normal and abnormal embedding of whatever is called `name`.

        Args:
            name: A noun, or a class of the training set.
            states: Normal and abnormal states in place of the prompt set's, `{}` for the name.
            templates: In place of the prompt set's, `{}` for a state.
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
        self._require_text()
        renormalise = self.config.prompts.renormalise
        embedding = embed_classes(self.model.encode_text, [called], prompts, renormalise=renormalise)[0].float()
        if not own:
            self.classes[called] = embedding
        return embedding

    def _require_text(self) -> None:
        """Load the text tower where it was left out: what is asked for was not embedded before."""
        if not any(weight.is_meta for weight in self.model.text_tower.parameters()):
            return
        bundle = load_backbone(self.config.backbone)
        require_same(self._fingerprints["text"], bundle.text_tower, self.config.backbone, source="the detector")
        self.model.take_text(bundle)

    @torch.inference_mode()
    def scores(self, images_B3SS: Tensor, text_BD2: Tensor, *, memory: Memory | None = None) -> Scores:
        """Maps and image evidence of preprocessed images.

        Args:
            images_B3SS: Preprocessed.
            text_BD2: Embedding of the class of each.
            memory: Normal images of their class; the surprise at not finding them adds to the maps.
        """
        features = self.model.features(images_B3SS.to(self.model.device))
        evidence = Evidence.of(features, text_BD2.to(self.model.device), temperature=self.model.temperature)
        levels = evidence.levels
        if memory is not None:
            surprise = memory.surprise(features.levels)
            levels = [level + more for level, more in zip(levels, surprise, strict=True)]
        weights_K = self.model.level_weights
        maps_BSS = anomaly_map(levels, size=self.size, domain=self.config.score.domain, weights_K=weights_K)
        # a blur as wide as a small defect would leave little of it in the highest values
        top_B = top_mean(mean_level(levels, weights_K=weights_K))
        return Scores(maps_BSS, evidence.classification.float(), evidence.abnormal.float(), top_B)

    @torch.inference_mode()
    def remember(self, images: Iterable[Source], *, name: str) -> None:
        """Remember normal pictures of a thing, in place of those remembered of it before; nothing is trained.

        A threshold is forgotten: scores of this thing are others from here on.

        Args:
            images: A few of them.
            name: What is in them, as it will be asked for.

        Raises:
            ValueError: No picture.
            DataError: A file that is no picture.
        """
        rows, mirrored = [], []
        for picture in map(opened, images):
            both = (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
            features = self.model.features(torch.stack([self.tensor_of(one) for one in both]).to(self.model.device))
            rows.append([level_2LD[0] for level_2LD in features.levels])
            mirrored.append([level_2LD[1] for level_2LD in features.levels])
        if not rows:
            raise ValueError(f"no normal picture of {name} to remember: give one or more")
        stacked = [[torch.stack(level) for level in zip(*one, strict=True)] for one in (rows, mirrored)]
        self.memories[self.prompts.name_of(name)] = Memory.of(*stacked)
        self.threshold = None

    def memory_of(self, name: str) -> Memory | None:
        """What is remembered of a thing."""
        return self.memories.get(self.prompts.name_of(name))

    def tensor_of(self, picture: Image.Image) -> Tensor:
        """(3, S, S) of an RGB picture."""
        return self.preprocess(squash(picture, None, side=self.size)[0])

    def image_logits(self, scores: Scores) -> NDArray[np.float64]:
        """(B,) one number an image, of which its score is the sigmoid."""
        return self.score.logits(scores.classification_B.cpu().numpy(), scores.top_B.cpu().numpy())

    def predict(
        self,
        images: Source | Iterable[Source],
        *,
        name: str,
        threshold: float | None = None,
        tile: int | None = None,
        batch_size: int = 8,
    ) -> "Detection | list[Detection]":
        """Look for defects.

        Args:
            images: A picture or a file, several of them, or a folder.
            name: What is in them: any noun.
            threshold: Of the score, in place of the detector's own.
            tile: Look at overlapping tiles of this side, in pixels of the picture, each as large as the model's input:
                a large picture that is squashed to it loses its small defects. The picture's score is that of its worst
                tile. None: the picture as a whole.
            batch_size: Pictures or tiles at a time; changes nothing but the time.

        Returns:
            One Detection for one picture, a list for several.

        Raises:
            DataError: A file that is no picture, a folder without any.
            ValueError: A tile below 16 pixels, or another one than the threshold was calibrated with.
        """
        several: Iterable[Source]
        if isinstance(images, Image.Image) or (isinstance(images, (str, Path)) and not Path(images).is_dir()):
            return next(self.predictions([images], name=name, threshold=threshold, tile=tile, batch_size=batch_size))
        several = files_of([str(images)]) if isinstance(images, (str, Path)) else images
        return list(self.predictions(several, name=name, threshold=threshold, tile=tile, batch_size=batch_size))

    def predictions(
        self,
        images: Iterable[Source],
        *,
        name: str,
        threshold: float | None = None,
        tile: int | None = None,
        batch_size: int = 8,
    ) -> Iterator[Detection]:
        """As `predict`, one after another, so that a large folder takes no more memory than a batch."""
        limit = self.limit(threshold, tile=tile)
        text_D2, memory = self.class_embedding(name), self.memory_of(name)
        pending = iter(images)
        while chunk := [opened(one) for one in islice(pending, batch_size if tile is None else 1)]:
            if tile is None:
                places = [(picture, Window(0, 0, *picture.size)) for picture in chunk]
            else:
                width, height = chunk[0].size
                places = [(chunk[0], window) for window in list_windows(width=width, height=height, tile=tile)]
            maps, logits = [], []
            for start in range(0, len(places), batch_size):
                batch = places[start : start + batch_size]
                tensors_B3SS = torch.stack([self.tensor_of(picture.crop(window)) for picture, window in batch])
                scores = self.scores(tensors_B3SS, text_D2.expand(len(batch), -1, -1), memory=memory)
                maps += list(scores.maps_BSS.cpu().numpy())
                logits += self.image_logits(scores).tolist()
            looked_at = [(window, resized(map_SS, window)) for (_, window), map_SS in zip(places, maps, strict=True)]
            if tile is None:
                for (_, map_HW), logit in zip(looked_at, logits, strict=True):
                    yield self._detection(map_HW, logit, limit)
            else:
                yield self._detection(blend_tiles(looked_at, width=width, height=height), max(logits), limit)

    def limit(self, threshold: float | None, *, tile: int | None) -> Threshold | None:
        """The threshold that makes verdicts: the given one, else the detector's own, which must be of these tiles.

        Raises:
            ValueError: It is of others.
        """
        if threshold is not None:
            return Threshold(threshold, method="given", tile=tile)
        if self.threshold is not None and self.threshold.tile != tile:
            raise ValueError(
                f"the threshold was calibrated with tile={self.threshold.tile}, not {tile}: calibrate again, or give "
                "a threshold"
            )
        return self.threshold

    def _detection(self, map_HW: NDArray[np.float32], logit: float, limit: Threshold | None) -> Detection:
        heatmap_HW = expit(map_HW - np.float32(self.border))
        mask_HW, score = heatmap_HW > 0.5, float(expit(logit))
        verdict: Literal["normal", "anomalous"] | None = None
        if limit is not None:
            verdict = "anomalous" if score >= limit.value else "normal"
        return Detection(score, verdict, heatmap_HW, mask_HW, find_regions(mask_HW, heatmap_HW, least=4))

    @property
    def fingerprints(self) -> dict[str, str]:
        """sha256 of the weights of the backbone's `image` and `text` tower."""
        return self._fingerprints or {
            "image": fingerprint(self.model.image_tower),
            "text": fingerprint(self.model.text_tower),
        }

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write what was trained and remembered, class embeddings, score and threshold; the CLIP stays where it is."""
        assert isinstance(self.model, AnomalyModel)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(self.classes)
        classes = {f"classes.{row}": self.classes[name] for row, name in enumerate(names)}
        write_tensors(folder / WEIGHTS, trained_state(self.model) | classes)
        write_memories(folder / MEMORY, self.memories)
        write_text(folder / CONFIG, to_yaml(self.config))
        told: dict[str, Any] = {
            "format": 2,
            "fingerprints": self.fingerprints,
            "classes": names,
            "score": self.score.to_dict(),
            "border": self.border,
            "threshold": None if self.threshold is None else self.threshold.to_dict(),
        }
        write_json(folder / DETECTOR, told)
        return folder

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Detector":
        """A run folder or a folder that `save_pretrained` wrote. The text tower waits for a name that is new.

        Raises:
            ValueError: One line: no such folder, a run without a model yet, damaged files, or another backbone.
        """
        folder = model_folder(Path(source))
        config = load_config(Config, config=folder / CONFIG)
        told = described(folder)
        bundle = load_backbone(config.backbone, text=False)
        require_same(told["fingerprints"]["image"], bundle.image_tower, config.backbone, source=folder)
        model = AnomalyModel(bundle, config)
        state = read_tensors(folder / WEIGHTS)
        rows = {name: f"classes.{row}" for row, name in enumerate(told["classes"])}
        if not state.keys() >= set(rows.values()):
            raise ValueError(f"{folder / WEIGHTS} is not of the same detector as {DETECTOR} beside it: copy both again")
        classes = {name: state.pop(key) for name, key in rows.items()}
        load_trained(model, state, source=folder / WEIGHTS)
        return cls(
            model,
            config,
            classes=classes,
            score=Logistic.from_dict(told["score"]),
            threshold=None if told["threshold"] is None else Threshold.from_dict(told["threshold"]),
            border=float(told["border"]),
            memories=read_memories(folder / MEMORY, levels=len(model.levels)),
            fingerprints=told["fingerprints"],
        )

    @classmethod
    def plain(cls, backbone: BackboneConfig | str = "tiny", *, config: Config | None = None) -> "Detector":
        """CLIP as it is, with the same prompts and maps: what training must beat."""
        config = config or Config()
        if isinstance(backbone, str):
            backbone = BackboneConfig(name=backbone, pretrained=None, activation=None, image_size=None)
        config = replace(config, backbone=backbone)
        return cls(PlainCLIP(load_backbone(backbone), levels=config.levels), config)


def opened(source: Source) -> Image.Image:
    """An RGB picture, from a file or as it is."""
    return as_rgb(source) if isinstance(source, Image.Image) else read_image(Path(source))


def resized(map_SS: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """(h, w) of a window."""
    size = (window.right - window.left, window.bottom - window.top)
    return np.asarray(Image.fromarray(map_SS).resize(size, Image.Resampling.BILINEAR))
