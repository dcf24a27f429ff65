"""A prefix in a few words, and what keeps it from being a key/value cache."""

from __future__ import annotations

from typing import Any

from foreword.shown import grouped

ENCODER_DECODER = "an encoder–decoder has two caches, and a single one is written"


def shown(prefix: Any) -> tuple[str, dict[str, Any]]:
    """Return the title and the facts of a prefix's `repr`."""
    size = prefix.num_bytes / 1000
    title = f"Prefix of {prefix.length} virtual tokens, {prefix.num_parameters:,} numbers, {size:,.0f} KB"
    facts: dict[str, Any] = {"base": f"{prefix.base.source or prefix.base.architecture}, {prefix.base.model_type}"}
    if prefix.slots:
        first = next(iter(prefix.slots.values()))
        kind = str(first.key.dtype).removeprefix("torch.")
        shape = "×".join(map(str, first.key.shape))
        facts["slots"] = f"{len(prefix.slots)}, {grouped(prefix.slots)}; keys {shape} {kind}"
    facts["made by"] = f"{prefix.method}, joined by {prefix.merge}, offset {prefix.position_offset}"
    loss = prefix.record.get("validation_loss")
    if isinstance(loss, int | float):
        facts["trained"] = f"validation loss {loss:.4f} after {prefix.record.get('step', '?')} steps"
    return title, facts


def no_cache(prefix: Any) -> str | None:
    """Say why a prefix can't be a key/value cache, which has as many tokens in every layer of a decoder; or None."""
    if not prefix.kind.is_cache:
        return f"it is {prefix.kind.export}"
    if list(prefix.slots) != [f"decoder.{layer}" for layer in range(prefix.base.num_layers)]:
        return "a cache needs keys and values in every layer of a decoder"
    if len({kv.length for kv in prefix.slots.values()}) > 1:
        return "a cache has as many tokens in every layer; this prefix has not"
    if any(kv.key.shape[2] != kv.value.shape[2] for kv in prefix.slots.values()):
        return "its keys and values differ in width, as in latent attention, whose caches hold neither"
    if prefix.position_offset != prefix.length:
        return (
            f"a cache moves real tokens up by its length {prefix.length}, but this prefix has position_offset "
            f"{prefix.position_offset}; see Prefix.with_offset"
        )
    return None


def on_lora(prefix: Any) -> str | None:
    """Say that a prefix was made on a base with a LoRA, which a program that runs the plain base lacks; or None."""
    if "+lora:" in (prefix.base.weights or ""):
        return "it was made on a base with a LoRA, and would run on the base without it"
    return None
