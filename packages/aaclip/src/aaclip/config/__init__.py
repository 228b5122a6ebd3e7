"""Every setting of aaclip with its unit and default: of the `model`, the `data` and the `training`.

`aaclip config` prints them, `section.field=value` sets one. The defaults are the source documents' design with its
slips corrected. `--config official` is the released code with its slips, `--config reference` has the documents'
values literally, `--config tiny` uses the CLIP that clip_common ships. Nothing here imports torch.
"""

from aaclip.config.data import AugmentConfig, DataConfig
from aaclip.config.model import (
    AdapterConfig,
    BackboneConfig,
    CrossAttentionConfig,
    HeadConfig,
    PreprocessConfig,
    PromptConfig,
    ScoreConfig,
    SurgeryConfig,
)
from aaclip.config.training import (
    AblateConfig,
    AblationArea,
    Config,
    FeedbackConfig,
    ImageStageConfig,
    LossConfig,
    StagesConfig,
    TextStageConfig,
)

__all__ = [
    "AblateConfig",
    "AblationArea",
    "AdapterConfig",
    "AugmentConfig",
    "BackboneConfig",
    "Config",
    "CrossAttentionConfig",
    "DataConfig",
    "FeedbackConfig",
    "HeadConfig",
    "ImageStageConfig",
    "LossConfig",
    "PreprocessConfig",
    "PromptConfig",
    "ScoreConfig",
    "StagesConfig",
    "SurgeryConfig",
    "TextStageConfig",
]
