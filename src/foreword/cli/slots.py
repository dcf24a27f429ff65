"""`foreword slots`: which attention layers of a model can take a prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from foreword.cli import common, tables
from foreword.shown import grouped

if TYPE_CHECKING:
    from foreword.models.slots import ModelSlots, Slot


def command(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, bundled name, or just a config.json.")],
    length: Annotated[int, typer.Option("--length", min=1, help="Virtual tokens to count parameters for.")] = 32,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Each layer, with its module.")] = False,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """List the attention layers that can take a prefix: shapes, parameters, backend. Needs no weights.

    Example: foreword slots gpt2-medium/config.json --length 100
    """
    from foreword.base.loading import empty_model, load_config
    from foreword.models.architectures import support_of
    from foreword.models.slots import find_slots
    from foreword.proof import require_proof

    empty = empty_model(load_config(model))
    require_proof(empty)
    model_slots, support = find_slots(empty), support_of(empty)
    total = sum(slot.parameters(length) for slot in model_slots.slots)
    if json:
        rows = [asdict(slot) | {"parameters": slot.parameters(length)} for slot in model_slots.slots]
        common.print_json(
            {
                "model": model,
                "length": length,
                "slots": rows,
                "parameters": total,
                "position_limit": model_slots.position_limit,
                "route": model_slots.route,
                "limits": model_slots.limits,
                "layers_without_slot": model_slots.without,
                "support": support or "in the table",
            }
        )
        return
    table = _table(model_slots.slots, length, verbose)
    tables.print_text(f"{model}: {len(model_slots.slots)} slots")
    tables.print_table(table)
    formula = _formula(model_slots, length)
    tables.print_text(f"direct, {length} virtual tokens: {formula} = {total:,} parameters")
    if support:
        tables.print_text(f"{empty.config.model_type} is not in the table of architectures; {support}")
    for note in _notes(model_slots):
        tables.print_text(note)


def _table(slots: Sequence[Slot], length: int, verbose: bool) -> Table:
    """A row for each run of equal layers, or for each layer."""
    table = common.table()
    last_columns = ("module", "backend") if verbose else ("layers", "parameters", "backend")
    for column in ("slots", "heads/KV", "head_dim", "window", *last_columns):
        left = column in ("slots", "module", "backend")
        table.add_column(column, justify="left" if left else "right")
    for _, run in groupby(slots, key=(lambda slot: slot.name) if verbose else _alike):
        same = list(run)
        first, parameters = same[0], sum(slot.parameters(length) for slot in same)
        window = "full" if first.sliding_window is None else str(first.sliding_window)
        width = str(first.key_dim) if first.key_dim == first.value_dim else f"{first.key_dim}/{first.value_dim}"
        shape = (f"{first.num_heads}/{first.num_kv_heads}", width, window)
        last = (first.module,) if verbose else (f"×{len(same)}", f"{parameters:,}")
        table.add_row(grouped([slot.name for slot in same]), *shape, *map(Text, (*last, first.backend)))
    return table


def _alike(slot: Slot) -> tuple[Any, ...]:
    """What equal layers have in common."""
    return dataclasses.astuple(dataclasses.replace(slot, name=slot.role, module=""))


def _formula(model_slots: ModelSlots, length: int) -> str:
    first = model_slots.slots[0]
    if len({(slot.num_kv_heads, slot.key_dim, slot.value_dim) for slot in model_slots.slots}) > 1:
        return "Σ over slots of H_kv · m · (d_k + d_v)"
    if first.key_dim != first.value_dim:
        widths = f"({first.key_dim} + {first.value_dim})"
        return f"L · m · H_kv · (d_k + d_v) = {len(model_slots.slots)} · {length} · {first.num_kv_heads} · {widths}"
    return f"2 · L · m · H_kv · d = 2 · {len(model_slots.slots)} · {length} · {first.num_kv_heads} · {first.key_dim}"


def _notes(model_slots: ModelSlots) -> list[str]:
    notes = []
    if model_slots.without:
        notes.append(f"no slot in layers {', '.join(map(str, model_slots.without))}: they have no attention")
    if model_slots.route == "cache":
        notes.append("through past_key_values: " + "; ".join(model_slots.limits))
    if model_slots.position_limit is not None:
        shared = "prefix and tokens share them" if model_slots.default_offset else "a prefix takes none of them"
        notes.append(f"positions end at {model_slots.position_limit}; {shared}")
    return notes
