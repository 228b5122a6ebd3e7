"""What goes wrong with a data set, said in one line."""


class DataError(ValueError):
    """A data set that cannot be used as it is: what was found, what was expected, what to do. Always one line."""
