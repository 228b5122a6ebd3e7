"""What the writers of the world's sets check before they draw."""


def check_counts(**counts: int) -> None:
    """Raise ValueError if a number of things to draw is negative, or all are zero."""
    if min(counts.values()) < 0 or sum(counts.values()) < 1:
        raise ValueError(f"nothing to draw: {', '.join(f'{name}={count}' for name, count in counts.items())}")
