"""Encoders of random weights for tests: a SentenceTransformer and a Whisper of a few thousand weights each, as folders.

The image encoder of tests is `tiny`, which the package ships.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
MELS = 16


def save_text_encoder(folder: Path, *, seed: int = 0, width: int = 16) -> Path:
    """A SentenceTransformer that spells: every letter is a token, and any other sign is unknown.

    Its BertModel is in the folder `NAME parts` beside it.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    parts = folder.with_name(f"{folder.name} parts")
    parts.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (parts / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(parts / "vocab.txt"), model_max_length=64).save_pretrained(parts)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(parts)
    module = Transformer(str(parts), max_seq_length=64)
    SentenceTransformer(modules=[module, Pooling(width)], device="cpu").save(str(folder))
    return folder


def save_audio_encoder(folder: Path, *, seed: int = 0, width: int = 16) -> Path:
    """A Whisper whose window is two seconds."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(
        num_mel_bins=MELS,
        d_model=width,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=2 * width,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=2 * width,
        max_source_positions=100,
        max_target_positions=8,
        vocab_size=40,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=MELS, chunk_length=2).save_pretrained(folder)
    return folder


def draw_image(file: Path, *, seed: int) -> Path:
    """A picture of a few random patches: different seeds differ as scenes do."""
    file.parent.mkdir(parents=True, exist_ok=True)
    patches = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(patches).resize((48, 40), Image.Resampling.NEAREST).save(file)
    return file


def make_samples(seed: int, *, seconds: float = 0.4, rate: int = 16_000) -> np.ndarray:
    """Samples (T,) float32 of a tone with an overtone; different seeds have other pitches."""
    time_T = np.arange(int(seconds * rate)) / rate
    pitch = 200.0 * 1.2 ** (seed % 12)
    wave_T = 0.5 * np.sin(2 * np.pi * pitch * time_T) + 0.2 * np.sin(2 * np.pi * 2.5 * pitch * time_T + seed)
    return wave_T.astype(np.float32)


def write_sound(file: Path, *, seed: int, seconds: float = 0.4, rate: int = 16_000) -> Path:
    """A sound file of `make_samples`."""
    import soundfile

    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, make_samples(seed, seconds=seconds, rate=rate), rate)
    return file
