"""Every setting of edgeglass with its unit and default: `alignment` for stage 1, `vlm` for stage 2.

`edgeglass config` prints them, `section.field=value` sets one. Nothing here imports torch, so that `edgeglass --help`
and `edgeglass config` are quick.
"""

from edgeglass.config.alignment import (
    MODALITIES,
    AudioConfig,
    Config,
    DataConfig,
    EmbeddingsConfig,
    EncoderConfig,
    EncodersConfig,
    FusionConfig,
    LoraConfig,
    LossConfig,
    MrlConfig,
    PerceiverConfig,
    SoundConfig,
    TextConfig,
    VisionConfig,
    check_widths,
)
from edgeglass.config.vlm import (
    AdapterConfig,
    AnswerConfig,
    DecoderConfig,
    PrefixConfig,
    QuestionDataConfig,
    TrmConfig,
    VlmConfig,
)

__all__ = [
    "MODALITIES",
    "AdapterConfig",
    "AnswerConfig",
    "AudioConfig",
    "Config",
    "DataConfig",
    "DecoderConfig",
    "EmbeddingsConfig",
    "EncoderConfig",
    "EncodersConfig",
    "FusionConfig",
    "LoraConfig",
    "LossConfig",
    "MrlConfig",
    "PerceiverConfig",
    "PrefixConfig",
    "QuestionDataConfig",
    "SoundConfig",
    "TextConfig",
    "TrmConfig",
    "VisionConfig",
    "VlmConfig",
    "check_widths",
]
