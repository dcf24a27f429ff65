"""Adapter-hub's `adapters` (prefix tuning) in a process and an environment of its own: it needs Transformers 4.57.

    PYTHON bench/adapters_worker.py FOLDER LENGTH

FOLDER holds the base as Transformers saves it. Every line read is a batch, a JSON list of rows {"input_ids",
"attention_mask", "labels"}; each is answered with one line of JSON once the update is done, {"loss", "megabytes"}:
peak memory above the loaded model. Reads no module that needs foreword. `elsewhere.Elsewhere` is the other end.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from harness import PeakMemory, padded


def main() -> int:
    folder, length = Path(sys.argv[1]), int(sys.argv[2])
    trainer = trainer_of(prepared(load(folder), length))
    learned = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=0.0)
    peak = PeakMemory()
    print("ready", flush=True)
    for line in sys.stdin:
        loss = trainer.training_step(trainer.model, trainer.data_collator(json.loads(line)))
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        trainer.model.zero_grad()
        print(json.dumps({"loss": float(loss), "megabytes": peak.megabytes()}), flush=True)
    return 0


def load(folder: Path) -> Any:
    """The Llama that Transformers 5 saved: 4.57 reads the angle's base by another name."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = saved.pop("rope_parameters")
    model = LlamaForCausalLM(LlamaConfig(**saved, rope_theta=rope["rope_theta"]))
    model.load_state_dict(
        load_file(folder / "model.safetensors"), strict=False
    )  # the head's weights are the embeddings'
    model.tie_weights()
    return model


def prepared(model: Any, length: int) -> Any:
    import adapters

    adapters.init(model)
    model.add_adapter("task", config=adapters.PrefixTuningConfig(prefix_length=length))
    model.train_adapter("task")
    return model.train()


def trainer_of(model: Any) -> Any:
    from adapters import AdapterTrainer
    from transformers import TrainingArguments

    settings = TrainingArguments(
        tempfile.mkdtemp(), max_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, seed=0
    )
    made = AdapterTrainer(model=model, args=settings, data_collator=padded)
    made.current_gradient_accumulation_steps = 1  # as its loop sets it
    return made


if __name__ == "__main__":
    sys.exit(main())
