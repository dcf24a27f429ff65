"""One batch, many ways: attached, through the model's own eager attention, through past_key_values, detached."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from foreword.base import Base
from foreword.prefix import KV, Prefix
from tiny import BOTH, ENCODERS, EOS, PAD, VISION, random_batch

NEW = 8  # tokens generated
TOLERANCE = 1e-4
CONTROL = 100 * TOLERANCE
Batch = dict[str, torch.Tensor]


def make_batch(base: Base, sizes: list[int], side: str = "right", seed: int = 2) -> Batch:
    """Rows of the given lengths for any kind of model; encoder–decoders get targets of other lengths."""
    kind = base.model.config.model_type
    generator = torch.Generator().manual_seed(seed)
    if kind in VISION:
        return {"pixel_values": torch.randn(len(sizes), 3, 32, 32, generator=generator)}
    batch = random_batch(sizes, side, seed)
    if kind == "roberta":  # it counts positions by token id
        batch["input_ids"][batch["attention_mask"] == 0] = base.model.config.pad_token_id
    if kind not in BOTH:
        return batch
    targets = random_batch([2 + size % 4 for size in sizes], "right", seed + 1)
    batch |= {"decoder_input_ids": targets["input_ids"], "decoder_attention_mask": targets["attention_mask"]}
    if kind == "whisper":
        del batch["input_ids"], batch["attention_mask"]
        batch["input_features"] = torch.randn(len(sizes), 8, 40, generator=generator)
    return batch


def row_of(batch: Batch, row: int) -> Batch:
    """One row without its padding."""
    single = {name: value[row : row + 1] for name, value in batch.items()}
    for ids, mask in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        if mask in single:
            kept = single[mask][0].bool()
            single |= {ids: single[ids][:, kept], mask: single[mask][:, kept]}
    return single


def outputs(model: Any, batch: Batch, **more: Any) -> torch.Tensor:
    """Logits, or the last hidden state of a model without a head."""
    if model.config.model_type not in (*ENCODERS, *VISION):
        more = {"use_cache": False} | more
    found = model(**batch, **more)
    return found.logits if "logits" in found else found.last_hidden_state


def run(base: Base, prefix: Any, batch: Batch, backend: str = "auto", **more: Any) -> torch.Tensor:
    """Outputs with `prefix` attached."""
    with base.attach(prefix, backend=backend):
        return outputs(base.model, batch, **more)


def run_expected(base: Base, prefix: Prefix, batch: Batch) -> torch.Tensor:
    """Outputs without Foreword's attention, at real tokens only (elsewhere 0)."""
    if base.model_slots.route == "attention":
        return run_eager(base, prefix, batch)
    logits: torch.Tensor | None = None
    for row in range(len(batch["input_ids"])):
        own = run_cached(base, prefix, row_of(batch, row))
        if logits is None:
            logits = own.new_zeros(*batch["input_ids"].shape, own.shape[-1])
        logits = logits.index_put((torch.tensor(row), batch["attention_mask"][row].nonzero()[:, 0]), own[0])
    assert logits is not None
    return logits


def run_eager(base: Base, prefix: Prefix, batch: Batch) -> torch.Tensor:
    """The model's own eager attention over concatenated keys, mask and positions made by hand."""
    more = {}
    if prefix.position_offset:
        mask = batch["attention_mask"]
        more["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0) + prefix.position_offset
    with eager_with(base, prefix):
        return outputs(base.model, batch, **more)


@contextmanager
def eager_with(base: Base, prefix: Prefix) -> Iterator[None]:
    names = {id(base.model.get_submodule(path)): list(slots) for path, slots in base.model_slots.readers.items()}

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
        own = names[id(module)]
        own.append(own.pop(0))  # ALBERT: the next call is the next layer's
        kv = prefix.slots.get(own[-1])
        if kv is not None:
            pk, pv = (part[None].expand(len(query), -1, -1, -1) for part in kv)
            key, value = torch.cat([pk, key], 2), torch.cat([pv, value], 2)
            mask = None if mask is None else F.pad(mask, (kv.length, 0))
            if others.get("position_bias") is not None:
                others["position_bias"] = F.pad(others["position_bias"], (kv.length, 0))
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, **others)

    AttentionInterface.register("concatenated", attention)
    AttentionMaskInterface.register("concatenated", eager_mask)
    configs = {id(module.config): module.config for module in base.model.modules() if hasattr(module, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}  # T5's stacks have their own
    for path in names_of_stacks(base):
        for module in base.model.get_submodule(path).modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = "concatenated"
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def names_of_stacks(base: Base) -> list[str]:
    return [stack.path for stack in base.model_slots.stacks]


def run_cached(base: Base, prefix: Prefix, batch: Batch) -> torch.Tensor:
    """Logits with the prefix's tensors as `past_key_values`, every part of it by hand."""
    rows = batch["input_ids"].shape[0]
    cache = DynamicCache(config=base.model.config)
    layers = {base.model.get_submodule(slot.module).layer_idx: prefix.slots[slot.name] for slot in base.slots}
    for layer, kv in layers.items():
        cache.update(*(part[None].expand(rows, -1, -1, -1) for part in kv), layer)
    mask = batch["attention_mask"]
    wide = torch.cat([torch.ones(rows, prefix.length, dtype=mask.dtype), mask], dim=1)
    positions = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0) + prefix.length}
    if not base.model_slots.explicit_positions:
        positions = {}
    return base.model(batch["input_ids"], attention_mask=wide, past_key_values=cache, **positions).logits


def real(values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Values at real tokens, `[tokens, width]`."""
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    return values.flatten(0, 1) if mask is None else values[mask.bool()]


def gradients(values: torch.Tensor, batch: Batch, prefix: Prefix) -> torch.Tensor:
    """Gradient of a loss over real tokens with respect to every tensor of the prefix, flattened."""
    picked = real(values, batch)
    loss = F.cross_entropy(picked, torch.arange(len(picked)) % picked.shape[-1])
    parts = torch.autograd.grad(loss, [part for kv in prefix.slots.values() for part in kv])
    return torch.cat([part.flatten() for part in parts])


def without_offset(prefix: Prefix) -> Prefix:
    return Prefix(prefix.slots, 0, prefix.base)


def only(prefix: Prefix, role: str) -> Prefix:
    """The slots of one role: encoder, decoder or cross."""
    slots = {name: KV(*kv) for name, kv in prefix.slots.items() if name.startswith(role)}
    return Prefix(slots, prefix.position_offset, prefix.base)


def generate(base: Base, prefix: Any, batch: Batch, backend: str = "auto", **options: Any) -> torch.Tensor:
    """Greedy tokens unless `options` say else, prompts included for decoders."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, "eos_token_id": EOS} | options
    with torch.no_grad(), base.attach(prefix, backend=backend):
        return base.model.generate(**batch, **settings)


def enable_checkpointing(model: Any, reentrant: bool) -> None:
    """Checkpointed layers in train mode, with dropout off."""
    # Transformers before 5.20 has only the older name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in (
            "attention_dropout",
            "dropout",
            "activation_dropout",
            "layerdrop",
            "dropout_rate",
            "attn_dropout_p",
        ):
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.0)
