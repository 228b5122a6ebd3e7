"""Settings of every test: no network, one thread for each model, no deadlines."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A loader that reaches for the network must fail in the test, not in a user's hands.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Models of tests are tiny: a second thread costs more than it brings, above all with several test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The time of an example tells more about the machine than about the code.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Products and convolutions of float32 in full precision on a GPU, without TF32."""
    import torch

    libraries = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [library.allow_tf32 for library in libraries]
    for library in libraries:
        library.allow_tf32 = False
    yield
    for library, allowed in zip(libraries, before, strict=True):
        library.allow_tf32 = allowed
