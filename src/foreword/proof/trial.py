"""A tiny model on trial: batches for it, its hidden states, and its own eager attention over concatenated keys."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.errors import UnsupportedModelError
from foreword.models.slots import ModelSlots
from foreword.prefix import KV
from foreword.proof.sizes import TOKENS

IMPLEMENTATION = "foreword-proof"
_CALLED = "_foreword_proof"  # attribute of an attention module on trial: what is called in its place
Batch = dict[str, Tensor]


class Trial:
    """model: the tiny model. both: it is an encoder–decoder. pictures: it reads pictures, not tokens."""

    def __init__(self, model: Any, seed: int = 1) -> None:
        self.model = model
        self.both = bool(model.config.is_encoder_decoder)
        parameters = inspect.signature(model.forward).parameters
        self.pictures = "input_ids" not in parameters and "pixel_values" in parameters
        if not self.pictures and "input_ids" not in parameters:
            raise UnsupportedModelError(f"{type(model).__name__} takes neither tokens nor pictures")
        self.masks = "attention_mask" in parameters and not self.pictures
        inner = inspect.signature(model.base_model.forward).parameters
        self.caches = "use_cache" in parameters or ("use_cache" in inner and "kwargs" in parameters)
        vocabulary = getattr(model.config.get_text_config(), "vocab_size", None)
        self.tokens = min(TOKENS, vocabulary) if isinstance(vocabulary, int) else TOKENS
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, sizes: Sequence[int], left: bool = False, targets: int = 0) -> Batch:
        """Return rows of the given lengths. Encoder–decoders also get `targets` tokens per row for the decoder."""
        if self.pictures:
            return {"pixel_values": self._picture(len(sizes))}
        ids, mask = self._rows(sizes, left)
        batch = {"input_ids": ids, "attention_mask": mask} if self.masks else {"input_ids": ids}
        if self.both:
            batch |= {"decoder_input_ids": self._rows([targets or max(sizes)] * len(sizes), False)[0]}
        return batch

    def _rows(self, sizes: Sequence[int], left: bool) -> tuple[Tensor, Tensor]:
        width = max(sizes)
        pad = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        ids = torch.full((len(sizes), width), pad if isinstance(pad, int) and pad >= 0 else 3)
        mask = torch.zeros(len(sizes), width, dtype=torch.long)
        for row, size in enumerate(sizes):
            where = slice(width - size, width) if left else slice(0, size)
            ids[row, where] = torch.randint(4, self.tokens, (size,), generator=self.generator)
            mask[row, where] = 1
        return ids, mask

    def _picture(self, count: int) -> Tensor:
        config = self.model.config
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        return torch.randn(count, int(getattr(config, "num_channels", 3)), size, size, generator=self.generator)

    def run(self, batch: Mapping[str, Any], stack: str, positions: Tensor | None = None, **more: Any) -> Tensor:
        """Return the hidden states `[B, n, width]` that the module `stack` gives.

        positions: the stack's position_ids `[B or 1, n]`; None: its own.
        """
        found: list[Any] = []
        module = self.model.get_submodule(stack)
        names = list(inspect.signature(module.forward).parameters)

        def place(module: Any, args: Any, kwargs: Any) -> Any:
            return (), dict(zip(names, args, strict=False)) | kwargs | {"position_ids": positions}

        hooks = [module.register_forward_hook(lambda module, args, output: found.append(output))]
        if positions is not None:
            hooks.append(module.register_forward_pre_hook(place, with_kwargs=True))
        if self.caches:
            more = {"use_cache": False} | more
        try:
            self.model(**batch, **more)
        finally:
            for hook in hooks:
                hook.remove()
        values = found[-1] if isinstance(found[-1], tuple) else tuple(found[-1].values())
        first = next((value for value in values if isinstance(value, Tensor)), None)
        if first is None or first.dim() != 3:
            raise UnsupportedModelError(f"{stack or type(self.model).__name__} gives no hidden states [B, n, width]")
        return first

    def attentions(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return path → attention module."""
        return {path: part for path, part in self.model.named_modules() if type(part).__name__ in classes}

    @contextmanager
    def calling(self, modules: Mapping[str, Any], function: Callable[..., Any]) -> Iterator[None]:
        """Within the block every attention module calls `function(path, module, q, k, v, mask, **others)`."""
        _register()
        configs = {id(part.config): part.config for part in self.model.modules() if hasattr(part, "config")}
        for path, module in modules.items():
            module.__dict__[_CALLED] = (path, function)
        for config in configs.values():
            config._attn_implementation = IMPLEMENTATION
        try:
            yield
        finally:
            for config in configs.values():
                config._attn_implementation = "eager"
            for module in modules.values():
                module.__dict__.pop(_CALLED, None)

    @contextmanager
    def concatenated(self, slots: ModelSlots, prefix: Mapping[str, KV]) -> Iterator[None]:
        """Within the block the model's own eager attention gets `prefix` before its keys and values, unmasked."""

        def attend(path: str, module: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
            if (kv := prefix.get(slots.readers[path][0])) is not None:
                front = [part[None].expand(len(query), -1, -1, -1) for part in kv]
                key, value = torch.cat([front[0], key], 2), torch.cat([front[1], value], 2)
                mask = mask if mask is None else F.pad(mask, (kv.length, 0))
                if others.get("position_bias") is not None:
                    others["position_bias"] = F.pad(others["position_bias"], (kv.length, 0))
            return eager(module)(module, query, key, value, mask, **others)

        with self.calling({path: self.model.get_submodule(path) for path in slots.readers}, attend):
            yield


def eager(module: Any) -> Callable[..., Any]:
    """Return the eager attention function of the module's file."""
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise UnsupportedModelError(f"{type(module).__name__} comes without an eager_attention_forward to compare with")
    found: Callable[..., Any] = function
    return found


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **others: Any) -> Any:
    called = module.__dict__.get(_CALLED)
    if called is None:
        raise UnsupportedModelError(f"{type(module).__name__} dispatches attention, but holds no slot")
    path, function = called
    return function(path, module, query, key, value, attention_mask, **others)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
