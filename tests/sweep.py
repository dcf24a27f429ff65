"""The proof of `foreword.proof`, over every causal LM, encoder and encoder–decoder class of the installed Transformers.

    python tests/sweep.py [types …]

Each class runs in a process of its own, with limits of time and memory: one that hangs or eats memory stops nothing
else. Types of the table are tried too, which tries the proof. `make models` runs this; docs/models.md shows the result.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import matrix
import sweep_page

os.environ["HF_HUB_OFFLINE"] = "1"
SECONDS, BYTES = 120, 12 * 2**30
MAPPINGS = {
    "causal LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "encoder–decoder": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "masked LM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "base model": "MODEL_MAPPING_NAMES",  # only of types that none of the others has
}
# What the default configuration lacks: it makes no model, or none with attention
_LAYERS = ["linear_attention", "full_attention"]
SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2, "head_dim": 144},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "granitemoehybrid": {"layer_types": _LAYERS * 16},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "reformer": {"is_decoder": True},
}
Row = dict[str, Any]


def installed() -> str:
    """Return the version of Transformers."""
    import transformers

    return str(transformers.__version__)


def targets() -> list[tuple[str, str, str]]:
    """Return (model type, class, mapping) of every class, each once."""
    from transformers.models.auto import modeling_auto

    found: dict[tuple[str, str], str] = {}
    types: set[str] = set()
    for title, name in MAPPINGS.items():
        for kind, named in getattr(modeling_auto, name).items():
            if title != "base model" or kind not in types:
                found.setdefault((kind, named if isinstance(named, str) else named[0]), title)
        types |= {kind for kind, _ in found}
    return [(kind, name, title) for (kind, name), title in sorted(found.items())]


def tried(kind: str, name: str) -> Row:
    """Return the row of one class: outcome, architecture or reason, seconds of processor time."""
    import torch
    import transformers

    from foreword.models.architectures import ARCHITECTURES, listed
    from foreword.models.slots import find_slots
    from foreword.proof.gate import prove

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.for_model(kind, **SETTINGS.get(kind, {}))
        with torch.device("meta"):
            model = getattr(transformers, name)._from_config(config)
    except Exception as error:  # noqa: BLE001  whatever it raises, it makes no model
        line = (str(error).strip().splitlines() or [""])[0][:160]
        return {"outcome": "no model", "reason": f"{type(error).__name__}: {line}"}
    begin = time.process_time()
    outcome = prove(model)
    row: Row = {"seconds": round(time.process_time() - begin, 2)}
    entry = listed(model.config)
    if entry is not None:
        row["table"] = kind if kind in ARCHITECTURES else model.config.get_text_config().model_type
    if outcome.architecture is None:
        return row | {"outcome": "refused", "reason": outcome.reason}
    found = outcome.architecture
    roles = dict.fromkeys(slot.role for slot in find_slots(model, found).slots)
    return row | {
        "outcome": "verified",
        "kind": found.kind,
        "slots": ", ".join(roles),
        "positions": found.positions,
        "layout": found.rotary or "–",
        "offset": find_slots(model, found).shifts,
        "packs": find_slots(model, found).packs,
        "recurrent": found.recurrent,
    }


def _work(kind: str, name: str, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    pipe.send(tried(kind, name))


def in_a_process(kind: str, name: str) -> Row:
    """Return `tried`, or why the process gave nothing."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(kind, name, theirs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECONDS) else {"outcome": "no result", "reason": f"over {SECONDS} seconds"}
    except EOFError:
        process.join()
        return {"outcome": "no result", "reason": f"its process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=sweep_page.FILE)
    parser.add_argument("types", nargs="*", help="only these model types")
    arguments = parser.parse_args()
    import torch
    import transformers
    from transformers import LlamaForCausalLM  # noqa: F401

    import foreword.proof.gate  # noqa: F401  imported once for all processes

    torch.set_num_threads(1)
    kept = json.loads(arguments.out.read_text(encoding="utf-8"))["classes"] if arguments.types else {}
    for kind, name, title in targets():
        if arguments.types and kind not in arguments.types:
            continue
        row = in_a_process(kind, name)
        kept[f"{kind} {name}"] = {"mapping": title} | row
        print(kind, name, json.dumps(row, ensure_ascii=False), file=sys.stderr, flush=True)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    text = json.dumps({"versions": versions, "classes": kept}, indent=1, sort_keys=True, ensure_ascii=False)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    matrix.write_page()


if __name__ == "__main__":
    main()
