"""Errors that users can correct, in one line each."""


class DataError(ValueError):
    """A data set that cannot be used. One line: what was found, what was expected, what to do."""


class ConfigError(ValueError):
    """A configuration that cannot be used. One line: which key, what was given, what was expected."""
