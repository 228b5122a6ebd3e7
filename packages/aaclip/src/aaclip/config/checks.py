"""Checks that several settings share."""

from clip_common.config import ConfigError


def check_least(name: str, value: float, *, least: float, what: str = "a number") -> None:
    """Raise ConfigError if a setting is below the least that makes sense."""
    if value < least:
        raise ConfigError(f"{name}: expected {what} from {least:g}, got {value}")
