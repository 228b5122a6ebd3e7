"""A vision transformer of open_clip as a CLIPVisionModel of transformers, where both compute the same.

Shapes: F width.
"""

from typing import Any

from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from clip_common.backbones.open_clip_trunks import OpenClipVision
from clip_common.backbones.spec import BackboneError

RENAMED = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Layers of a block: open_clip's names to those of transformers."""


def convert_clip_vision(trunk: OpenClipVision) -> Any:
    """Return a CLIPVisionModel with the weights of an open_clip trunk, without its projection.

    Its `last_hidden_state` are the tokens before the last layer norm, its `pooler_output` the class token after it.

    Raises:
        BackboneError: A trunk with parts that CLIPVisionModel lacks.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    visual = trunk.visual
    _check_convertible(trunk)
    first = visual.transformer.resblocks[0]
    config = CLIPVisionConfig(
        hidden_size=trunk.width,
        intermediate_size=first.mlp.c_fc.out_features,
        num_hidden_layers=len(visual.transformer.resblocks),
        num_attention_heads=first.attn.num_heads,
        image_size=visual.image_size[0],
        patch_size=trunk.patch_size,
        hidden_act="quick_gelu" if isinstance(first.mlp.gelu, QuickGELU) else "gelu",
        layer_norm_eps=visual.ln_post.eps,
    )
    model = CLIPVisionModel(config).eval()
    model.load_state_dict(_rename_weights(trunk))
    return model


def _check_convertible(trunk: OpenClipVision) -> None:
    visual = trunk.visual
    blocks = visual.transformer.resblocks
    gelu = getattr(blocks[0].mlp, "gelu", None)
    known = isinstance(gelu, QuickGELU) or (type(gelu) is nn.GELU and gelu.approximate == "none")
    differing = {
        "an attentional pooler": visual.attn_pool is not None,
        "no class token in its pooling": visual.pool_type != "tok" or visual.final_ln_after_pool,
        "no layer norm before its blocks": not isinstance(visual.ln_pre, nn.LayerNorm),
        "blocks of another kind": any(type(block) is not ResidualAttentionBlock for block in blocks),
        "layer scales": any(not isinstance(block.ls_1, nn.Identity) for block in blocks),
        "another activation": not known,
    }
    if found := [part for part, differs in differing.items() if differs]:
        raise BackboneError(
            f"this open_clip model has {' and '.join(found)}, unlike CLIPVisionModel of transformers: align with a "
            "vision model of transformers"
        )


def _rename_weights(trunk: OpenClipVision) -> dict[str, Tensor]:
    visual = trunk.visual
    state = {
        "embeddings.class_embedding": visual.class_embedding,
        "embeddings.patch_embedding.weight": visual.conv1.weight,
        "embeddings.position_embedding.weight": visual.positional_embedding,
    }
    for theirs, norm in (("pre_layrnorm", visual.ln_pre), ("post_layernorm", visual.ln_post)):
        state |= {f"{theirs}.{name}": tensor for name, tensor in norm.state_dict().items()}
    for number, block in enumerate(visual.transformer.resblocks):
        prefix = f"encoder.layers.{number}."
        for ours, theirs in RENAMED.items():
            part = block.get_submodule(ours).state_dict()
            state |= {f"{prefix}{theirs}.{name}": tensor for name, tensor in part.items()}
        for name in ("weight", "bias"):
            parts = getattr(block.attn, f"in_proj_{name}").chunk(3)
            state |= {f"{prefix}self_attn.{letter}_proj.{name}": x for letter, x in zip("qkv", parts, strict=True)}
    return {name: tensor.detach().float().cpu() for name, tensor in state.items()}
