"""Hidden states for task heads, from a base of any architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from foreword.base import Base
from foreword.base.inputs import padded, vocabulary
from foreword.errors import ConfigError
from foreword.models.lora import without_lora
from foreword.prefix import Prefix
from foreword.tasks.base import attached

Pooling = Literal["auto", "mean", "first", "last"]


def token_states(base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return (last hidden states `[B, n, hidden]`, boolean mask of the prompts' own tokens `[B, n]`).

    The mask is False for padding and virtual tokens. The states of an encoder–decoder are those of its encoder.
    """
    with attached(base, prefix, prompts) as ids:
        inputs, mask = padded(base, ids, left=False).values()
        if base.model.config.is_encoder_decoder:
            states = base.model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state
        else:
            states = _stack(base)(**_arguments(base, inputs, mask)).last_hidden_state
    return states, mask.bool() & (inputs < vocabulary(base))


def pooled_states(
    base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]], pooling: Pooling = "auto"
) -> Tensor:
    """Return one vector per prompt, `[B, hidden]`.

    pooling: "mean", "first" or "last" of the states of the prompt's own tokens; the first token of an encoder is [CLS].
    "auto": the mean for an encoder, the last token for a decoder. For an encoder–decoder, the state that the decoder
    computes for its start token.
    """
    if base.model.config.is_encoder_decoder and pooling == "auto":
        return _decoder_state(base, prefix, prompts)
    states, is_own = token_states(base, prefix, prompts)
    kind = pooling if pooling != "auto" else "mean" if base.slots[0].role == "encoder" else "last"
    if kind == "mean":
        weights = is_own.to(states.dtype).unsqueeze(-1)
        return (states * weights).sum(1) / weights.sum(1)
    places = torch.arange(states.shape[1], device=states.device).expand_as(is_own)
    chosen = places.masked_fill(~is_own, -1).amax(1) if kind == "last" else places.masked_fill(~is_own, 2**31).amin(1)
    return states[torch.arange(len(states), device=states.device), chosen]


def _decoder_state(base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the state of an encoder–decoder's start token after each prompt, `[B, hidden]`."""
    with attached(base, prefix, prompts) as ids:
        inputs, mask = padded(base, ids, left=False).values()
        start = inputs.new_full((len(inputs), 1), int(base.model.config.decoder_start_token_id or 0))
        output = _stack(base)(
            input_ids=inputs, attention_mask=mask, decoder_input_ids=start, output_hidden_states=True, use_cache=False
        )
    states: Tensor = output.decoder_hidden_states[-1]
    return states[:, 0]


def pair_ids(base: Base, first: str, second: str, **options: Any) -> Any:
    """Encode two texts with the tokenizer. A line break separates them if the tokenizer puts no token between them."""
    tokenizer = base.tokenizer
    separates = tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)
    return tokenizer(first if separates else first + "\n", second, **options)


def require_places(base: Base, clause: str) -> None:
    """Raise `ConfigError` if the tokenizer is a slow one, which can't return token positions.

    clause: what the positions tell, for the message: "… does not say where {clause}".
    """
    if not base.tokenizer.is_fast:
        raise ConfigError("model", f"{base.name} has a slow tokenizer, which does not say where {clause}")


def glues_words(base: Base) -> bool:
    """Return True if the tokenizer joins words that it gets one by one without a space, as byte-level ones do."""
    ids = base.tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return " " not in base.tokenizer.decode(ids)


def encoder_side(base: Base) -> set[str]:
    """Return the roles of the slots that are used when text is read but not generated."""
    encoder_decoder = bool(base.model.config.is_encoder_decoder)
    return {slot.role for slot in base.slots} - ({"decoder", "cross"} if encoder_decoder else set())


def own_states(base: Base, prefix: Prefix | None, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return for each prompt the states of its own tokens, `[tokens, hidden]`, without virtual tokens and padding."""
    states, is_own = token_states(base, prefix, prompts)
    return [row_states[kept] for row_states, kept in zip(states, is_own, strict=True)]


def _stack(base: Base) -> Any:
    """Return the model without its output layer."""
    return without_lora(base.model).base_model


def _arguments(base: Base, ids: Tensor, mask: Tensor) -> dict[str, Any]:
    """Return the arguments of a call. In a causal model no token sees the padding behind it, so there is no mask."""
    if all(slot.role == "decoder" for slot in base.slots) and base.model_slots.route == "attention":
        return {"input_ids": ids, "use_cache": False}
    return {"input_ids": ids, "attention_mask": mask}
