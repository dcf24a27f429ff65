"""What kind of architecture a tiny model is, found by running it: what sees what, and what positions do."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from foreword.errors import UnsupportedModelError
from foreword.models.architectures import Architecture, Kind, Positions, dispatching
from foreword.models.stacks import stack_of
from foreword.proof.trial import Trial, eager

SAME = 1e-4  # relative: equal but for rounding
LENGTH = 12
_LIMITS = ("max_position_embeddings", "n_positions", "max_target_positions", "n_ctx", "max_seq_len", "seq_length")


def distance(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual − expected‖ / ‖expected‖; infinite if a number is not finite."""
    actual, expected = actual.detach().double(), expected.detach().double()
    value = float((actual - expected).norm() / expected.norm().clamp(min=1e-12))
    return value if value == value else float("inf")


@torch.no_grad()
def inferred(trial: Trial) -> Architecture:
    """Return the architecture of the model on trial. Its rotary layout is still unknown.

    Raises `UnsupportedModelError` if it has no attention that dispatches, or sees tokens in no known way.
    """
    classes = dispatching(trial.model)
    modules = trial.attentions(classes)
    called: list[str] = []

    def note(path: str, module: Any, *tensors: Any, **others: Any) -> Any:
        called.append(path)
        return eager(module)(module, *tensors, **others)

    batch = trial.batch([LENGTH])
    with trial.calling(modules, note):
        trial.model(**batch, **({"use_cache": False} if trial.caches else {}))
    if not called:
        raise UnsupportedModelError("no module of it dispatches through AttentionInterface")
    if len(set(called)) < len(called):
        again = next(path for path in called if called.count(path) > 1)
        raise UnsupportedModelError(f"{type(modules[again]).__name__} at {again} attends more than once in a pass")
    names = tuple(dict.fromkeys(type(modules[path]).__name__ for path in called))
    return _nature(trial, modules, names, called)


def _nature(trial: Trial, modules: dict[str, Any], names: tuple[str, ...], called: list[str]) -> Architecture:
    stack = stack_of(called[-1], trial.model)
    kind = _kind(trial, stack)
    config = trial.model.config.get_text_config()
    limit = next((name for name in _LIMITS if isinstance(getattr(config, name, None), int)), _LIMITS[0])
    takes = "position_ids" in inspect.signature(trial.model.get_submodule(stack).forward).parameters
    positions, after, counts = _shifted(trial, stack) if takes and kind != "encoder-decoder" else (None, False, False)
    return Architecture(
        names[0],
        kind,
        positions or _by_parts(trial.model),
        layout="unknown",
        limit=limit,
        after_padding=after,
        counts_mask=counts,
        recurrent=not trial.pictures and _recurrent(trial, modules, stack, kind),
        also=names[1:],
        verified=True,
    )


def _kind(trial: Trial, stack: str) -> Kind:
    if trial.both:
        return "encoder-decoder"
    if trial.pictures:
        return "encoder"
    batch = trial.batch([LENGTH])
    before = trial.run(batch, stack)
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][0, -1] = batch["input_ids"][0, -1] % 20 + 5
    after = trial.run(batch, stack)
    return "decoder" if distance(after[:, :-1], before[:, :-1]) < SAME else "encoder"


def _shifted(trial: Trial, stack: str) -> tuple[Positions, bool, bool]:
    """Return (positions, `after_padding`, `counts_mask`) of a stack that takes position_ids."""
    batch = trial.batch([LENGTH])
    plain, steps = trial.run(batch, stack), torch.arange(LENGTH)[None]
    given = trial.run(batch, stack, positions=steps)
    after = distance(given, plain) > SAME
    moved = distance(trial.run(batch, stack, positions=steps + 5), given) > SAME
    stretched = distance(trial.run(batch, stack, positions=2 * steps), given) > SAME
    if moved:  # a table; or rotary keys whose place shows (norms after rotation, queries scaled by position)
        positions: Positions = "rotary" if _has_rotary(trial.model) else "learned"
    else:
        positions = "rotary" if stretched else "none"
    return positions, after, positions == "learned" and _counts_mask(trial, stack)


def _counts_mask(trial: Trial, stack: str) -> bool:
    if not trial.masks:
        return False
    batch = trial.batch([LENGTH, LENGTH - 5], left=True)
    real = batch["attention_mask"].bool()
    counted = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return distance(trial.run(batch, stack)[real], trial.run(batch, stack, positions=counted)[real]) < SAME


def _by_parts(model: Any) -> Positions:
    """Return the positions of a model that takes none from outside, by the names of its parts."""
    names = [path.lower() for path, _ in model.named_modules()]
    if any("relative_attention_bias" in name for name in names):
        return "relative"
    if _has_rotary(model):
        return "rotary"
    tokens = not hasattr(model.config, "image_size")
    return "learned" if tokens and any("position" in name or name.endswith("wpe") for name in names) else "none"


def _has_rotary(model: Any) -> bool:
    return any("rotary" in path.lower() or "rope" in path.lower() for path, _ in model.named_modules())


def _recurrent(trial: Trial, modules: dict[str, Any], stack: str, kind: Kind) -> bool:
    """Return True if tokens see each other although every dispatched attention gives zeros."""

    def nothing(path: str, module: Any, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Any:
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    name = "decoder_input_ids" if kind == "encoder-decoder" else "input_ids"
    batch = trial.batch([LENGTH])
    changed = batch[name].clone()
    changed[0, 2] = changed[0, 2] % 20 + 5
    with trial.calling(modules, nothing):
        before, after = trial.run(batch, stack), trial.run(batch | {name: changed}, stack)
    others = torch.arange(LENGTH) != 2
    return distance(after[:, others], before[:, others]) > SAME
