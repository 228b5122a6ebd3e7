"""Shared by aaclip's tests: a small CLIP with random weights."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Models of a test are tiny: a second thread costs more than it brings, above all where tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 4},
}


@pytest.fixture(scope="session")
def bundle():
    """A CLIP of 8 image blocks and 4 text blocks, 4 x 4 patches."""
    from clip_common.backbones import load_clip

    made = load_clip("small", pretrained="random", model_config=ARCHITECTURE, seed=0)
    made.image_tower.eval()
    made.text_tower.eval()
    return made
