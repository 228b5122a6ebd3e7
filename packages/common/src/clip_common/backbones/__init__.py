"""Image, text and audio towers by name: loaders for a CLIP, for a pair of models under heads, and for each alone.

    bundle = load_clip("ViT-B-32", pretrained="laion2b_s34b_b79k")
    bundle = load_dual(vision="facebook/dinov2-small", text="sentence-transformers/all-MiniLM-L6-v2")
    bundle.image_tower, bundle.text_tower, bundle.preprocess, bundle.tokenizer, bundle.spec
    encoder = load_vision("facebook/dinov2-small")      # one of the two: as bundle.image
    encoder = load_audio("openai/whisper-base")         # sounds

open_clip and transformers are imported by the first load, not by this import.
"""

from clip_common.backbones.audio_models import load_audio
from clip_common.backbones.dual import load_dual
from clip_common.backbones.encoder import (
    AudioEncoder,
    Bundle,
    Encoder,
    Feed,
    ImageEncoder,
    ImageFeed,
    SoundFeed,
    TextEncoder,
    TextFeed,
)
from clip_common.backbones.frozen import behaviour, fingerprint, freeze, is_frozen
from clip_common.backbones.huggingface import prefetch
from clip_common.backbones.open_clip import load_clip
from clip_common.backbones.preprocess import Preprocess
from clip_common.backbones.spec import (
    AudioContext,
    AudioSpec,
    BackboneError,
    BundleSpec,
    ImageSpec,
    Spec,
    TextSpec,
    Tokens,
    move,
)
from clip_common.backbones.store import load_bundle, save_bundle
from clip_common.backbones.text_models import load_text
from clip_common.backbones.tokenizers import Tokenizer
from clip_common.backbones.towers import TextTower, Tower, VisionTower
from clip_common.backbones.trunk import TokenSequence, VisionOutput
from clip_common.backbones.vision_models import load_vision

__all__ = [
    "AudioContext",
    "AudioEncoder",
    "AudioSpec",
    "BackboneError",
    "Bundle",
    "BundleSpec",
    "Encoder",
    "Feed",
    "ImageEncoder",
    "ImageFeed",
    "ImageSpec",
    "Preprocess",
    "SoundFeed",
    "Spec",
    "TextEncoder",
    "TextFeed",
    "TextSpec",
    "TextTower",
    "TokenSequence",
    "Tokenizer",
    "Tokens",
    "Tower",
    "VisionOutput",
    "VisionTower",
    "behaviour",
    "fingerprint",
    "freeze",
    "is_frozen",
    "load_audio",
    "load_bundle",
    "load_clip",
    "load_dual",
    "load_text",
    "load_vision",
    "move",
    "prefetch",
    "save_bundle",
]
