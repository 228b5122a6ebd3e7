"""Where a model looked: the energy of the tokens that it pooled, or Grad-CAM for encoders that pool them all alike.

B clips, D width of a token, T, H, W the grid of the tokens.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from videoclip.models import VideoAttentionCLIP
from videoclip.models.clip_align import Output
from videoclip.models.pooling import MapGuidedVideoEncoder
from videoclip.models.stem import upcast
from videoclip.report.overlay import compute_energy, stretch


def locate_focus(model: VideoAttentionCLIP, output: Output) -> NDArray[np.float32]:
    """Return where a model looked in the first clip of a batch, (T, H, W) from 0 to 1.

    The small 3D encoder: the energy of the tokens as pooled, gated and weighted by the map that guided. Every other
    encoder: `grad_cam` of the predicted class.
    """
    if model.config.clip_backbone != "3dcnn":
        return grad_cam(model, output)
    tokens_B64THW, gate = output.gated_tokens, output.video_gate
    if gate is not None and gate.ndim == 5:
        tokens_B64THW = tokens_B64THW * gate.mean(dim=1, keepdim=True)
    return compute_energy(tokens_B64THW[0])


def grad_cam(model: VideoAttentionCLIP, output: Output) -> NDArray[np.float32]:
    """Return Grad-CAM of the class that is predicted for the first clip, frame by frame, (T, H, W) from 0 to 1.

    For each frame, ReLU(Σ_d w_d·x_d), w the mean over the frame of the logit's gradient with respect to the tokens x
    (Selvaraju et al., "Grad-CAM", 2017). Zeros if no token speaks for the class.
    """
    encoder = model.video_encoder
    assert not isinstance(encoder, MapGuidedVideoEncoder)
    # cuDNN has no backward pass of an LSTM in eval mode
    with torch.inference_mode(False), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        tokens_1DTHW = output.video_tokens[:1].detach().clone().requires_grad_()
        feature_1F = encoder.pooled(tokens_1DTHW)
        if output.video_gate is not None:
            feature_1F = feature_1F * output.video_gate[:1].clone()
        logits_K = model.classifier(feature_1F)[0]
        (slope_1DTHW,) = torch.autograd.grad(logits_K[int(output.logits[0].argmax())], tokens_1DTHW)
    weight_1DT11 = upcast(slope_1DTHW).mean(dim=(3, 4), keepdim=True)
    return stretch((weight_1DT11 * upcast(tokens_1DTHW.detach())).sum(dim=1)[0].relu())


def predicted_map(output: Output) -> NDArray[np.float32] | None:
    """Return the map that the model predicted for the first clip, (T, H, W) from 0 to 1; None if it predicts none."""
    predicted: Tensor | None = output.predicted_map
    return None if predicted is None else stretch(predicted[0, 0])
