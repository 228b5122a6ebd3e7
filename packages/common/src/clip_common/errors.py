"""The error for data sets that cannot be used."""


class DataError(ValueError):
    """A data set that cannot be used. One line: what was found, what was expected, what to do."""
