"""QwenDecoder: a causal language model of transformers that reads embeddings, under low-rank adapters.

Shapes: B rows, Q new tokens, K tokens with those of the cache, E width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from edgeglass.config import AdapterConfig
from edgeglass.models.adapters import inject_adapters, list_linear_names

ALL = "all-linear"


class QwenDecoder(nn.Module):
    """A language model as a decoder of sequences that start with an image.

    Args:
        model: Causal language model of transformers (`clip_common.backbones.load_language`), frozen.
        lora: Low-rank adapters to add, drawn from torch's generator; rank 0: none.
        checkpointing: Compute activations again in the backward pass.

    Raises:
        ValueError: Adapters for layers that the model does not have.
    """

    def __init__(self, model: Any, *, lora: AdapterConfig | None = None, checkpointing: bool = False) -> None:
        super().__init__()
        if lora is not None and lora.r:
            add_adapters(model, lora)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model = model

    @property
    def width(self) -> int:
        """E."""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def layers(self) -> int:
        """Number of layers, each with keys and values of its own in a cache."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def dtype(self) -> torch.dtype:
        """Of embeddings and hidden states."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight.dtype

    def embed(self, ids_BQ: Tensor) -> Tensor:
        """Return the embeddings (B, Q, E) of token ids."""
        embeds: Tensor = self.model.get_input_embeddings()(ids_BQ)
        return embeds

    def states(
        self,
        embeds_BQE: Tensor,
        *,
        mask_B1QK: Tensor,
        positions_BQ: Tensor,
        cache: Any = None,
        steps: int | None = None,
    ) -> list[Tensor]:
        """Return the last hidden states (B, Q, E), after the final norm, as a list of one: there are no loops.

        Args:
            embeds_BQE: Of image and text tokens.
            mask_B1QK: Whether a token attends to another, bool.
            positions_BQ: Positions of the tokens, long.
            cache: Of `make_cache`; it grows by Q tokens.
            steps: Not used; decoders with loops take it.
        """
        output = self.model.get_decoder()(
            inputs_embeds=embeds_BQE,
            attention_mask=mask_B1QK,
            position_ids=positions_BQ,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return [output.last_hidden_state]

    def logits(self, states_QE: Tensor) -> Tensor:
        """Return the logits (…, V) of hidden states (…, E)."""
        logits: Tensor = self.model.get_output_embeddings()(states_QE)
        return logits


def add_adapters(model: Any, config: AdapterConfig) -> None:
    """Put low-rank adapters (peft) into linear layers of a language model, and let them alone train.

    Raises:
        ValueError: No linear layer has one of the names.
    """
    try:
        inject_adapters(
            model,
            ALL if config.targets == [ALL] else config.targets,
            r=config.r,
            alpha=config.alpha,
            dropout=config.dropout,
        )
    except ValueError as error:
        raise ValueError(
            f"decoder.lora.targets={config.targets}: the decoder has no such linear layers, it has "
            f"{', '.join(list_linear_names(model))}"
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
