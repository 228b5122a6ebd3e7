"""Checks that settings of both stages share."""

from typing import Any

from clip_common.config import ConfigError


def check_least(section: Any, name: str, **least: int) -> None:
    """Raise ConfigError unless each of these fields is null or at least its number."""
    for field_name, number in least.items():
        value = getattr(section, field_name)
        if value is not None and value < number:
            raise ConfigError(f"{name}.{field_name}: expected a whole number from {number}, got {value}")
