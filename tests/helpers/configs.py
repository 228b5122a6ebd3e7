"""Configurations as flat dictionaries."""


def leaves(tree: dict, prefix: str = "") -> dict:
    """Return the fields of nested sections by their dotted names."""
    flat = {}
    for name, value in tree.items():
        flat |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
