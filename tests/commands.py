"""What a call of the command line must have done."""


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, error = result
    told = [line for line in error.splitlines() if line.strip()]
    assert code == 2, error
    assert len(told) == 1, f"not one line:\n{error}"
    for word in words:
        assert word in told[0], f"{word!r} is not in: {told[0]}"


def succeeded(result: tuple[int, str, str]) -> str:
    code, printed, error = result
    assert code == 0, error
    return printed
