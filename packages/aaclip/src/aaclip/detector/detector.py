"""A trained detector: an image and a noun in; a verdict, a score, a heatmap, a mask and boxes out.

    from aaclip import Detector

    detector = Detector.from_pretrained("runs/aaclip/first")
    found = detector.predict("part.jpg", name="metal nut")

Shapes: B images, D shared width, S pixels of the model's input, H and W of a picture.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from aaclip.config import BackboneConfig, Config
from aaclip.data.augment import squash
from aaclip.detector.calibration import UNFITTED, Logistic, Threshold, choose_threshold
from aaclip.detector.detection import Detection
from aaclip.detector.files import Stored, is_saved, load_trained, read_detector, trained_state, write_detector
from aaclip.detector.looking import Picture, look, open_picture
from aaclip.detector.memory import Memory
from aaclip.detector.scorer import Scorer, Scores
from aaclip.models import AnomalyModel, PlainCLIP
from aaclip.models.backbone import (
    check_activation,
    load_backbone,
    load_text_tower,
    make_model,
    make_preprocess,
    read_backbone,
)
from aaclip.models.contexts import Contexts, TextContexts
from aaclip.models.names import normalise_class
from aaclip.models.prompts import PromptSet, embed_classes, load_prompts
from clip_common.backbones import fingerprint
from clip_common.backbones.preprocess import Preprocess
from clip_common.devices import pick_device
from clip_common.errors import check_list
from clip_common.images import find_images
from clip_common.tensors import check_fingerprint

Device = str | torch.device


class Detector:
    """A scorer with class embeddings, a threshold, and a folder to be saved in.

    Args:
        model: In eval mode from here on.
        config: Of its training, or of plain CLIP.
        classes: Embeddings (D, 2) that are known already, by class. A class is what the user calls it: "metal_nut" and
            "Metal nut" are one (`normalise_class`), and two classes that prompts call "scan" are two.
        score: From classification and map to one number; None: unfitted.
        threshold: Of the score; None: no verdicts.
        border: Logit difference of a map from which a pixel counts as part of a defect.
        memories: Remembered normal images, by class; see `remember`.
        contexts: What prompts and images attend to; None without cross-attention.
        fingerprints: Of the backbone's `image` and `text` tower if the text tower is not loaded; None: computed.
        name: What reports call it; default: the run's name or the backbone's.
        device: Device to run on; default: a GPU if available.
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
        device: Device | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.score = score or UNFITTED
        self.classes = {normalise_class(name): text_D2 for name, text_D2 in (classes or {}).items()}
        self.threshold = threshold
        self.border = border
        self.memories = {normalise_class(name): memory for name, memory in (memories or {}).items()}
        self.contexts = contexts
        model.check_contexts(contexts, at_test=config.cross_attention.at_test)
        self.name = name or config.name or config.backbone.name
        self._fingerprints = dict(fingerprints or {})
        self.to(pick_device() if device is None else device)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: Device | None = None) -> "Detector":
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
        check_activation(bundle, stored.activation, source=source)
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
            device=device,
        )

    @classmethod
    def plain(
        cls,
        backbone: BackboneConfig | str = "tiny",
        *,
        config: Config | None = None,
        device: Device | None = None,
    ) -> "Detector":
        """Load CLIP without any adapter, with the same prompts and maps: what training must beat.

        Args:
            backbone: Its configuration, or a name as commands take it (`models.backbone.read_backbone`).
            config: Everything else.
            device: Device to run on; default: a GPU if available.
        """
        if isinstance(backbone, str):
            backbone = read_backbone(backbone)
        config = replace(config or Config(), backbone=backbone)
        model = PlainCLIP(load_backbone(backbone), levels=config.levels)
        name = ":".join(Path(part).name for part in (backbone.name, backbone.pretrained) if part)
        return cls(model, config, name=name, device=device)

    @classmethod
    def open(cls, source: str | Path, *, device: Device | None = None) -> "Detector":
        """Load a run, a saved detector or a loop's file, or plain CLIP if `source` is the name of a CLIP."""
        if is_saved(source):
            return cls.from_pretrained(source, device=device)
        return cls.plain(str(source), device=device)

    def to(self, device: Device) -> "Detector":
        """Move the model and everything that is remembered to a device; a text tower that was left out stays so."""
        self.model.to(device)
        at = self.device
        self.classes = {name: text_D2.to(at) for name, text_D2 in self.classes.items()}
        self.memories = {name: memory.to(at) for name, memory in self.memories.items()}
        self.contexts = None if self.contexts is None else self.contexts.to(at)
        return self

    @property
    def device(self) -> torch.device:
        """Device on which everything is computed; inputs may be on any."""
        return self.model.device

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write everything but the CLIP: trained weights, memories, class embeddings, score and threshold."""
        assert isinstance(self.model, AnomalyModel)
        folder = Path(folder)
        stored = Stored(
            config=self.config,
            state=trained_state(self.model),
            fingerprints=self.fingerprints,
            activation=self.model.bundle.spec.activation,
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
        check_list(states or (), "states")
        check_list(templates, "templates")
        for side in states or ():
            check_list(side, "states of a side")
        own = states is not None or bool(templates)
        known, called = normalise_class(name), self.prompts.name_of(name)
        if not own and known in self.classes:
            return self.classes[known]
        prompts = self.prompts
        if states is not None:
            prompts = replace(prompts, normal=tuple(states[0]), abnormal=tuple(states[1]))
        if templates:
            prompts = replace(prompts, templates=tuple(templates))
        self._load_text_tower()
        encode = self.model.encode_text
        if self.contexts is not None:
            assert isinstance(self.model, AnomalyModel)
            encode = partial(self.model.encode_text, contexts_GLD=self.contexts.image_of(known)[None])
            if not own:
                self.contexts.text[known] = self.model.read_text_context(prompts.list_all(called))
        embedding = embed_classes(encode, [called], prompts)[0].float()
        if not own:
            self.classes[known] = embedding
        return embedding

    def text_contexts(self, names: Sequence[str]) -> TextContexts | None:
        """Return what the images of a batch attend to; None without cross-attention.

        Args:
            names: What each image shows; one name stands for any number of images.
        """
        check_list(names, "names")
        if self.contexts is None:
            return None
        for name in set(names):
            self.class_embedding(name)  # reads the context of a new name too
        return TextContexts.of(self.contexts.text, [normalise_class(name) for name in names])

    def _load_text_tower(self) -> None:
        """Load the text tower if it was left out; stored embeddings do not need it."""
        if any(weight.is_meta for weight in self.model.text_tower.parameters()):
            text_tower = load_text_tower(self.config.backbone, expected=self._fingerprints["text"], source=self.name)
            self.model.take_text(text_tower)

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
        # what the detector holds is on the device already (`to`); callers may bring their own from anywhere
        device = self.device
        levels = [] if memory is None else memory.to(device).levels
        context = None if context is None else context.to(device)
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
        check_list(images, "images")
        context = self.text_contexts([name])
        plain, mirrored = [], []
        for picture in map(open_picture, images):
            both = (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
            images_2B3SS = torch.stack([self.tensor_of(one) for one in both]).to(self.device)
            features = self.model.features(images_2B3SS, context)
            plain.append([level_2LD[0] for level_2LD in features.levels])
            mirrored.append([level_2LD[1] for level_2LD in features.levels])
        if not plain:
            raise ValueError(f"no normal picture of {name} to remember: give one or more")
        by_level = [[torch.stack(level) for level in zip(*images, strict=True)] for images in (plain, mirrored)]
        self.memories[normalise_class(name)] = Memory.from_patches(*by_level)
        self.threshold = None

    def memory_of(self, name: str) -> Memory | None:
        """Return the remembered images of a thing, or None."""
        return self.memories.get(normalise_class(name))

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
        check_list(images, "images")
        limit = choose_threshold(self.threshold, threshold, tile=tile)
        return look(self, images, name=name, limit=limit, tile=tile, batch_size=batch_size)
