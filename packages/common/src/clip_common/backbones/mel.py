"""Samples to the log-mel spectrograms that a Whisper encoder takes, cut into segments of at most its window.

Shapes: T samples or spectrogram frames, M mel bands.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clip_common.backbones.spec import AudioContext
from clip_common.sounds import RATE

SILENCE = RATE
"""`context=sound`: samples of silence after a sound, which tell the encoder that it ends: 1 s."""
STEP = RATE // 4
"""`context=sound`: lengths are rounded up to a multiple of this many samples (0.25 s), so that batches form."""
STRIDE = 2
"""Spectrogram frames per token: the stride of Whisper's second convolution."""


class Segments(NamedTuple):
    """Spectrograms of one sound, in order.

    Attributes:
        mels: (M, T) each.
        frames: Number of tokens that hold sound, of each.
    """

    mels: tuple[Tensor, ...]
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Mel:
    """Samples to the segments of a Whisper encoder.

    Args:
        extractor: WhisperFeatureExtractor.
        positions: Tokens of the encoder's window.
        context: `full` pads each segment to the whole window, as the encoder was trained; `sound` by a second of
            silence, and then to the next quarter of a second within the window.
    """

    extractor: Any
    positions: int
    context: AudioContext

    @property
    def key(self) -> str:
        """Equal keys, equal segments."""
        extractor = self.extractor
        settings = (extractor.feature_size, extractor.n_fft, extractor.hop_length)
        padding = (SILENCE, STEP) if self.context == "sound" else ()
        return json.dumps([self.context, RATE, self.window, *settings, *padding])

    @property
    def window(self) -> int:
        """Samples of the encoder's window."""
        return self.positions * self.token

    @property
    def token(self) -> int:
        """Samples per token."""
        return STRIDE * self.extractor.hop_length

    def __call__(self, samples_T: Tensor) -> Segments:
        """Return the spectrograms of (T,) float32 samples at 16 kHz."""
        waves = samples_T.split(self.window)
        return Segments(
            tuple(self._transform(wave_T) for wave_T in waves),
            tuple(math.ceil(len(wave_T) / self.token) for wave_T in waves),
        )

    def _transform(self, wave_T: Tensor) -> Tensor:
        length = self.window
        if self.context == "sound":
            length = min(length, STEP * math.ceil((len(wave_T) + SILENCE) / STEP))
        padded_T = torch.nn.functional.pad(wave_T, (0, length - len(wave_T)))
        output = self.extractor(
            padded_T.numpy(), sampling_rate=RATE, padding="longest", truncation=False, return_tensors="pt"
        )
        return output["input_features"][0]
