"""Attention modules that dispatch through AttentionInterface, as code that comes with a checkpoint may define them.

All but `PlainAttention` and `GatedAttention` compute something that a prefix of keys and values can't be part of, or
something that no check could see.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, eager_attention_forward


class StrangeConfig(LlamaConfig):  # type: ignore[misc]
    model_type = "strange"


class PlainAttention(LlamaAttention):  # type: ignore[misc]
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        projections = self.q_proj, self.k_proj, self.v_proj
        query, key, value = (project(hidden_states).view(shape).transpose(1, 2) for project in projections)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mask = self.masked(attention_mask, value)
        output, weights = attend(self, query, key, value, mask, scaling=self.scaling, **kwargs)
        output = self.changed(output, hidden_states, key, value)
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights

    def masked(self, mask: Any, value: torch.Tensor) -> Any:
        return mask

    def changed(self, output: Any, hidden: Any, key: Any, value: Any) -> Any:
        return output


class GatedAttention(PlainAttention):
    """Reads its own tokens only: exact with a prefix."""

    def changed(self, output: Any, hidden: Any, key: Any, value: Any) -> Any:
        return output * torch.sigmoid(hidden.mean(-1))[..., None, None]


class SummingAttention(PlainAttention):
    """Adds the first value outside attention."""

    def changed(self, output: Any, hidden: Any, key: Any, value: Any) -> Any:
        return output + value[:, :1, :1].mean()


class BiasedAttention(PlainAttention):
    """Adds a bias made of the values, as Doge does."""

    def masked(self, mask: Any, value: torch.Tensor) -> Any:
        bias = F.softplus(value.mean((1, 3)))[:, None, None]
        return None if mask is None else mask + bias


class CountingAttention(PlainAttention):
    """Divides by the number of keys."""

    def changed(self, output: Any, hidden: Any, key: Any, value: Any) -> Any:
        return output / key.shape[2] ** 0.5


class NoisyAttention(PlainAttention):
    def changed(self, output: Any, hidden: Any, key: Any, value: Any) -> Any:
        return output * (1 + 0.1 * torch.rand(()))


class SilentAttention(PlainAttention):
    """Lets a prefix change nothing."""

    def changed(self, output: Any, hidden: Any, key: Any, value: Any) -> Any:
        return 1e-9 * output


class TwiceAttention(PlainAttention):
    """Attends twice, as DiffLlama does."""

    def changed(self, output: Any, hidden: Any, key: Any, value: Any) -> Any:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        query = self.q_proj(hidden).view(*hidden.shape[:-1], -1, self.head_dim).transpose(1, 2)
        return output - attend(self, query, key, 2 * value, None, scaling=self.scaling)[0]


class Strange(LlamaForCausalLM):  # type: ignore[misc]
    config_class = StrangeConfig
    attention: type[nn.Module] = PlainAttention

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for number, layer in enumerate(self.model.layers):
            layer.self_attn = self.attention(config, number)


def strange(attention: type[nn.Module]) -> Any:
    """Return a small model whose layers attend by `attention`."""
    names = {"attention": attention, "__module__": __name__, "__qualname__": attention.__name__}
    kind = type("Strange", (Strange,), names)
    torch.manual_seed(0)
    config = StrangeConfig(
        vocab_size=300, hidden_size=128, intermediate_size=160, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return kind(config)
