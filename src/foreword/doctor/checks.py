"""The self-check: parity, mixed rows, ten training steps, save and load, on a tiny random model."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from foreword import status
from foreword.base import Base
from foreword.config import TrainConfig
from foreword.doctor.report import Check
from foreword.prefix import KV, Prefix
from foreword.training import train

TOLERANCE = 1e-4
_WORDS = ("red", "green", "blue", "grey")


def run_checks() -> Iterator[Check]:
    """Run every check and yield its result. A check that raises an error has failed; the others still run."""
    checks: dict[str, Callable[[Base], tuple[bool, str]]] = {  # each returns (passed, what was measured)
        "parity with past_key_values": _parity,
        "rows with different prefixes": _mixed_rows,
        "ten training steps": _training,
        "save and load": _storage,
    }
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device, (name, check) in product(devices, checks.items()):
        began = time.perf_counter()
        status.doing(f"checking {name}")
        try:
            with status.listening(status.Silent()):
                passed, seen = check(_tiny_base(device))
        except Exception as error:  # noqa: BLE001 - a broken installation may raise anything, and the report must say what
            passed, seen = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Check(name if device == "cpu" else f"{name}, on {device}", passed, seen, time.perf_counter() - began)


def _parity(base: Base) -> tuple[bool, str]:
    """Compare logits and prefix gradients with Transformers' own cache. Logits without the prefix must differ."""
    from transformers import DynamicCache

    prefix, ids = _prefix(base, 6), torch.arange(20, 32, device=base.device)[None]
    tensors = [tensor.requires_grad_() for kv in prefix.slots.values() for tensor in kv]
    pairs = [tuple(tensor[None] for tensor in kv) for kv in prefix.slots.values()]
    positions = torch.arange(6, 18, device=base.device)[None]
    expected = base.model(ids, position_ids=positions, past_key_values=DynamicCache(pairs)).logits
    with base.attach(prefix):
        logits = base.model(ids).logits
    plain = base.model(ids).logits
    grads = [
        torch.cat([g.flatten() for g in torch.autograd.grad(out.logsumexp(-1).sum(), tensors)])
        for out in (logits, expected)
    ]
    off, grad_off, control = (_relative(*pair) for pair in ((logits, expected), grads, (plain, expected)))
    seen = (
        f"logits off by {off:.1e}, gradients by {grad_off:.1e} (limit {TOLERANCE:.0e}); "
        f"without the prefix {control:.1e}"
    )
    return off < TOLERANCE and grad_off < TOLERANCE and control > 100 * TOLERANCE, seen


def _mixed_rows(base: Base) -> tuple[bool, str]:
    first, second, ids = _prefix(base, 6), _prefix(base, 9, 1), torch.arange(20, 32, device=base.device).repeat(3, 1)
    with torch.no_grad():
        with base.attach([first, None, second]):
            together = base.model(ids).logits
        separate = []
        for prefix in (first, None, second):
            with base.attach(prefix):
                separate.append(base.model(ids[:1]).logits)
    off = _relative(together, torch.cat(separate))
    return off < TOLERANCE, f"off by {off:.1e} from separate runs"


def _training(base: Base) -> tuple[bool, str]:
    before = base.weights_hash()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = [{"input": str(number), "target": _WORDS[number % 4]} for number in range(40)]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        config = TrainConfig(
            data=str(path), template="{input}=", length=4, steps=10, batch_size=8, warmup=1, lr=0.1, trackers=(),
            output=str(Path(folder) / "run"),
        )  # fmt: skip
        result = train(base, config)
    first, unchanged = result.history[0]["validation_loss"], base.weights_hash() == before
    seen = f"validation loss {first:.3f} → {result.validation_loss:.3f}, base {'unchanged' if unchanged else 'CHANGED'}"
    return unchanged and result.validation_loss < first, seen


def _storage(base: Base) -> tuple[bool, str]:
    prefix = _prefix(base, 6)
    with tempfile.TemporaryDirectory() as folder:
        loaded = Prefix.load(prefix.save(Path(folder) / "prefix"))
    pairs = zip(prefix.tensors(), loaded.tensors(), strict=True)
    same = all(torch.equal(tensor.cpu(), read) for (_, tensor), (_, read) in pairs)
    return same, f"{prefix.num_bytes:,} bytes {'came back as they were' if same else 'DIFFER'}"


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((actual - expected).norm() / expected.norm()).detach())


def _prefix(base: Base, length: int, seed: int = 0) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    captured = base.capture(torch.randint(3, 250, (1, length), generator=generator))
    slots = {name: KV(*(tensor * 1.1 for tensor in kv)) for name, kv in captured.items()}
    return Prefix(slots, length, base.fingerprint)


def _tiny_base(device: str) -> Base:
    """Make a two-layer Llama with a byte tokenizer. Its random weights are scaled up, so that attention matters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=259, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=256, eos_token_id=257, pad_token_id=258,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(10.0)
    return Base(model.to(device), _byte_tokenizer(), name="doctor's tiny model")


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )
