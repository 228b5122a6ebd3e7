"""Audio trunks: the encoder of a Whisper; `load_audio`.

Shapes: B sounds, S segments of them, M mel bands, T spectrogram frames or tokens, F width.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from clip_common.backbones.encoder import AudioEncoder, SoundFeed
from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.hub import find_folder
from clip_common.backbones.huggingface import load_mel_extractor, load_model
from clip_common.backbones.mel import Mel
from clip_common.backbones.spec import AudioContext, AudioSpec, BackboneError
from clip_common.backbones.towers import Tower
from clip_common.backbones.trunk import Block, TokenSequence, Trunk
from clip_common.sounds import RATE

PARTS = {"whisper": "models.whisper.modeling_whisper.WhisperEncoder"}
RENAMED = {r"^(model\.)?encoder\.": ""}
"""Names of the encoder's weights in a checkpoint of a whole Whisper."""
TOKENS_AT_ONCE = 16 * 1500
"""Tokens in one run of the encoder: 16 whole windows. Bounds the memory of a batch of long recordings."""


class WhisperBlock(Block):
    """A layer of a Whisper encoder, which takes no attention mask."""

    def __call__(self, x_BTF: Tensor) -> Tensor:
        return self.module(x_BTF, None)


class WhisperAudio(Trunk):
    """The encoder of a Whisper: its features are the mean over the tokens that hold sound, of all segments.

    It ignores masks, so segments run together only if their spectrograms have the same length: what a sound yields does
    not depend on the other sounds of its batch.

    Attributes:
        context: `sound` or `full`, as the feed pads segments.
    """

    def __init__(self, model: Any, *, context: AudioContext) -> None:
        super().__init__()
        self.model = model
        self.context = context
        self.width = model.config.d_model

    @property
    def blocks(self) -> list[Block]:
        return [WhisperBlock(module) for module in self.model.layers]

    def embed(self, mels_SMT: Tensor) -> Tensor:
        """Return the tokens (S, T, F) before the first block, with as many positions as the spectrograms have."""
        gelu = nn.functional.gelu
        x_SFT = gelu(self.model.conv2(gelu(self.model.conv1(mels_SMT))))
        x_STF = x_SFT.transpose(1, 2)
        return x_STF + self.model.embed_positions.weight[: x_STF.shape[1]]

    def encode(self, mels_SMT: Tensor) -> Tensor:
        """Return the tokens (S, T, F) of spectrograms of one length; those of a whole window equal WhisperEncoder's."""
        x_STF = self.embed(mels_SMT)
        for block in self.blocks:
            x_STF = block(x_STF)
        return self.model.layer_norm(x_STF)

    def forward(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the tokens (T, F) that hold sound, of each of B sounds.

        Args:
            inputs: What `SoundFeed.batch` returns.
        """
        mels_SMT = inputs["mel"]
        lengths, frames, owners = (inputs[name].tolist() for name in ("length", "frames", "owner"))
        tokens: dict[int, Tensor] = {}
        for length in sorted(set(lengths)):
            alike = [segment for segment, its in enumerate(lengths) if its == length]
            at_once = max(1, 2 * TOKENS_AT_ONCE // length)
            for start in range(0, len(alike), at_once):
                chosen = alike[start : start + at_once]
                encoded_STF = self.encode(mels_SMT[chosen, :, :length])
                tokens |= {segment: x_TF[: frames[segment]] for segment, x_TF in zip(chosen, encoded_STF, strict=True)}
        parts: list[list[Tensor]] = [[] for _ in range(owners[-1] + 1)]
        for segment, owner in enumerate(owners):
            parts[owner].append(tokens[segment])
        return [torch.cat(part) for part in parts]

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([tokens_TF.mean(dim=0) for tokens_TF in self(inputs)])

    def sequence(self, inputs: Mapping[str, Tensor]) -> TokenSequence:
        tokens = self(inputs)
        masks = [tokens_TF.new_ones(len(tokens_TF), dtype=torch.bool) for tokens_TF in tokens]
        pad = nn.utils.rnn.pad_sequence
        return TokenSequence(pad(tokens, batch_first=True), pad(masks, batch_first=True))


def load_audio(name: str | Path, *, context: AudioContext = "sound") -> AudioEncoder:
    """Load the encoder of a Whisper, in eval mode, without a head.

    A sound is cut into segments of at most the encoder's window (30 s). The features of the two contexts differ, and so
    do their keys in a cache and their fingerprints.

    Args:
        name: `tiny` (the package's own, no network), or folder or hub name of a Whisper; weights of its decoder are not
            read and may be absent.
        context: `sound`: the encoder sees a segment and one second of silence. `full`: it sees its whole window, as it
            was trained; about 30 times slower on sounds of half a second.

    Raises:
        BackboneError: No such model, not a Whisper, damaged weights, or a weight of the encoder is missing.
    """
    if context not in get_args(AudioContext):
        raise BackboneError(f"context {context!r}: expected {' or '.join(get_args(AudioContext))}")
    folder = find_folder(name, part="audio")
    model = load_model(folder, parts=PARTS, optional=(), renamed=RENAMED)
    config = model.config
    if config.model_type != "whisper":
        raise BackboneError(f"{folder} holds a {type(model).__name__}: expected a Whisper")
    extractor = load_mel_extractor(folder, mels=config.num_mel_bins)
    if (extractor.feature_size, extractor.sampling_rate) != (config.num_mel_bins, RATE):
        raise BackboneError(
            f"{folder}: its spectrograms have {extractor.feature_size} bands at {extractor.sampling_rate} Hz, but its "
            f"encoder takes {config.num_mel_bins} at {RATE} Hz: get both of its files of settings again"
        )
    trunk = WhisperAudio(model, context=context)
    mel = Mel(extractor, positions=config.max_source_positions, context=context)
    spec = AudioSpec(
        name=str(name),
        width=trunk.width,
        depth=len(trunk.blocks),
        embed_dim=trunk.width,
        fingerprint=hashlib.sha256(f"{fingerprint(model)} {context}".encode()).hexdigest(),
        sample_rate=RATE,
        mels=config.num_mel_bins,
        window_seconds=mel.window / RATE,
        positions=config.max_source_positions,
        context=context,
    )
    return AudioEncoder(Tower(trunk).eval(), SoundFeed(mel), spec)
