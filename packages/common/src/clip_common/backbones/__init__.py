"""Towers and language models by name: a CLIP, a pair of models under heads, a single encoder, a causal model.

    bundle = load_clip("ViT-B-32", pretrained="laion2b_s34b_b79k")
    bundle = load_dual(vision="facebook/dinov2-small", text="sentence-transformers/all-MiniLM-L6-v2")
    bundle.image_tower, bundle.text_tower, bundle.preprocess, bundle.tokenizer, bundle.spec
    encoder = load_vision("facebook/dinov2-small")      # one of the two: as bundle.image
    encoder = load_audio("openai/whisper-base")         # sounds
    language = load_language("Qwen/Qwen2.5-3B-Instruct", quantization="4bit")
    language.model, language.tokenizer, language.spec

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
from clip_common.backbones.hub import prefetch
from clip_common.backbones.language import (
    LanguageModel,
    check_quantization,
    load_language,
    make_cache,
    save_language,
)
from clip_common.backbones.open_clip import load_clip
from clip_common.backbones.preprocess import Preprocess
from clip_common.backbones.quiet import quiet_bitsandbytes
from clip_common.backbones.spec import (
    AudioContext,
    AudioSpec,
    BackboneError,
    BundleSpec,
    ImageSpec,
    LanguageSpec,
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
    "LanguageModel",
    "LanguageSpec",
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
    "check_quantization",
    "fingerprint",
    "freeze",
    "is_frozen",
    "load_audio",
    "load_bundle",
    "load_clip",
    "load_dual",
    "load_language",
    "load_text",
    "load_vision",
    "make_cache",
    "move",
    "prefetch",
    "quiet_bitsandbytes",
    "save_bundle",
    "save_language",
]
