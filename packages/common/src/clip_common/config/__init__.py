"""Configuration: typed dataclasses, a YAML file over their defaults, dotted overrides over both.

    config = load_config(Config, config="finetune", overrides=["loss.name=clip", "optim.lr=3e-5"], package="clipse")

A schema is a dataclass of dataclasses. Errors are one line: an unknown key names the nearest known one, a wrong type
names field, type and value. Nothing here imports torch.
"""

from clip_common.config.loading import apply_overrides, load_config, to_yaml
from clip_common.config.sections import OptimConfig, TrainerConfig
from clip_common.errors import ConfigError

__all__ = ["ConfigError", "OptimConfig", "TrainerConfig", "apply_overrides", "load_config", "to_yaml"]
