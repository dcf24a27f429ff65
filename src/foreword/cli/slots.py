"""`foreword slots`: which attention layers of a model can take a prefix."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from foreword.cli import common

if TYPE_CHECKING:
    from foreword.models.slots import ModelSlots


def command(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, bundled name, or just a config.json.")],
    length: Annotated[int, typer.Option("--length", min=1, help="Virtual tokens to count parameters for.")] = 32,
    json: common.Json = False,
    debug: common.Debug = False,
) -> None:
    """List the attention layers that can take a prefix: backend, shapes, parameters. Needs no weights.

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
    table = Table(title=Text(f"{model}: {len(model_slots.slots)} slots"))
    for column in ("slot", "module", "backend"):
        table.add_column(column, overflow="fold")
    for column in ("heads", "KV heads", "head_dim", "window", "parameters"):
        table.add_column(column, justify="right")
    for slot in model_slots.slots:
        window = "full" if slot.sliding_window is None else str(slot.sliding_window)
        width = str(slot.key_dim) if slot.key_dim == slot.value_dim else f"{slot.key_dim}/{slot.value_dim}"
        numbers = (slot.num_heads, slot.num_kv_heads, width, window, f"{slot.parameters(length):,}")
        table.add_row(slot.name, slot.module, slot.backend, *map(str, numbers))
    console = common.out()
    console.print(table)
    formula = _formula(model_slots, length)
    console.print(f"direct, {length} virtual tokens: {formula} = {total:,} parameters", soft_wrap=True)
    if support:
        console.print(f"{empty.config.model_type} is not in the table of architectures; {support}", soft_wrap=True)
    for note in _notes(model_slots):
        console.print(note, soft_wrap=True)


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
