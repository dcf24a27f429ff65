"""Who is compared in training: Foreword, PEFT under Transformers' Trainer, and the limit of a step.

All train the same rows with AdamW at the same global batch. Each takes its own way: PEFT's batches are made by
Transformers' own collator and padded to their longest row, as its users have them.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import foreword
from foreword.data import Example, Reading
from foreword.methods import METHODS
from foreword.methods.base import Start
from foreword.tasks import LanguageModelling, TaskSettings
from foreword.tasks.head_loss import head_losses
from foreword.tasks.lm import collate, only_at, target_losses
from harness import padded

TEMPLATES = {"e2e": "{input}\nDescription:", "java-csharp": "{input}\nC#:"}
PEERS = ("peft prefix", "peft prefix, text", "peft lora")
OURS = ("foreword direct", "foreword mlp")
Step = Callable[[Sequence[Example]], None]


def examples_of(base: foreword.Base, data: str, name: str, split: str, limit: int, longest: int = 512) -> list[Example]:
    """The first `limit` rows of at most `longest` tokens."""
    task = LanguageModelling(base, TaskSettings(TEMPLATES[name]))
    rows, _ = task.load(f"{data}/{name}/{split}.jsonl", Reading(max_tokens=longest, max_bad_rows=10**9, limit=limit))
    return list(rows)


def the_limit(base: foreword.Base) -> Step:
    """Forward, and backward towards inputs only: real tokens alone, loss at target positions alone, nothing learned."""
    table, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()

    def step(examples: Sequence[Example]) -> None:
        batch = collate(examples, base, packing=True)
        embedded = table(batch.inputs["input_ids"]).requires_grad_()
        with base.attach(None, packed=batch.packed), only_at(base.model, batch.positions, shown=0) as picked:
            base.model(inputs_embeds=embedded, use_cache=False)
            head_losses(picked[0], head, batch.targets).mean().backward()

    return step


def ours(base: foreword.Base, method: str, length: int) -> tuple[nn.Module, Step]:
    """(what is trained, one update of `foreword train`'s loop without its checks and files); needs no tokenizer."""
    ids = torch.arange(100, 100 + length) % 250
    slots = base.capture(ids.unsqueeze(0))
    embeddings = base.model.get_input_embeddings()(ids.to(base.device)).detach()
    start = Start(foreword.Prefix(slots, length, base.fingerprint), embeddings, base)
    producer = METHODS[method].start(start, METHODS[method].parse_options({})).to(base.device)
    optimizer = torch.optim.AdamW(producer.parameters(), lr=1e-4, weight_decay=0.0)

    def step(examples: Sequence[Example]) -> None:
        batch = collate(examples, base, packing=True)
        with base.attach(producer(), packed=batch.packed):
            losses = target_losses(base, batch)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(producer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return producer, step


def peft_step(base: foreword.Base, length: int) -> Step:
    """PEFT's prefix tuning on a copy of `base`'s model, with padded rows."""
    from peft import PrefixTuningConfig, get_peft_model

    model = get_peft_model(
        copy.deepcopy(base.model), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
    )
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=0.0)

    def step(examples: Sequence[Example]) -> None:
        inputs = padded([features(row) for row in examples], base.device)
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peft_model(name: str, length: int, text: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer) of a PEFT contender."""
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model, initialize_kv_prefix_from_text

    own = foreword.load("smollm2-135m", device="cpu")  # PEFT changes the model it is given
    if name == "peft lora":
        config: Any = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
        return get_peft_model(own.model, config), own.tokenizer
    model = get_peft_model(own.model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length))
    if name == "peft prefix, text":
        initialize_kv_prefix_from_text(model, own.tokenizer, text=str(text), use_chat_template=False)
    return model, own.tokenizer


def trainer(
    model: Any, tokenizer: Any, rows: Sequence[Example], steps: int, batch: int, lr: float = 1e-4, callbacks: Any = ()
) -> Any:
    """Transformers' Trainer over `rows`, its own defaults but for what is compared."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    settings = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=steps, learning_rate=lr, use_cpu=True,
        report_to=[],
        save_strategy="no", logging_strategy="no", remove_unused_columns=False, disable_tqdm=True, weight_decay=0.0,
        warmup_steps=min(10, steps // 2), seed=0,
    )  # fmt: skip
    return Trainer(
        model=model, args=settings, train_dataset=[features(row) for row in rows], callbacks=list(callbacks),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )  # fmt: skip


def peers(name: str, length: int, text: str | None = None) -> tuple[Any, Step]:
    """One update of the Trainer: its collator, its `training_step`, clipping and AdamW."""
    model, tokenizer = peft_model(name, length, text)
    made = trainer(model, tokenizer, [], 1, 1)
    made.current_gradient_accumulation_steps = 1  # as its loop sets it
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
    model.train()

    def step(examples: Sequence[Example]) -> None:
        inputs = made.data_collator([features(row) for row in examples])
        made.training_step(model, inputs)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        model.zero_grad()

    return model, step


def features(row: Example) -> dict[str, list[int]]:
    ids = [*row.prompt_ids, *row.target_ids]
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [*[-100] * len(row.prompt_ids), *row.target_ids],
    }


@torch.no_grad()
def peft_loss(model: Any, tokenizer: Any, rows: Sequence[Example], batch: int = 16) -> float:
    """Mean loss in nats per target token."""
    from transformers import DataCollatorForSeq2Seq

    collator, total, count = DataCollatorForSeq2Seq(tokenizer, padding=True), 0.0, 0
    was, _ = model.training, model.eval()
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch]
        tokens = sum(len(row.target_ids) for row in chosen)
        total += float(model(**collator([features(row) for row in chosen])).loss) * tokens
        count += tokens
    model.train(was)
    return total / count


def data_of(folder: str | Path, name: str) -> tuple[str, str]:
    return f"{folder}/{name}/train.jsonl", f"{folder}/{name}/valid.jsonl"
