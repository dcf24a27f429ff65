"""mlx-lm answers with an exported prefix as Foreword does, and what it saved comes back as a prefix."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import foreword
from engine_helpers import in_mlx
from foreword.errors import ExportError, ImportFormatError, PrefixMismatchError
from foreword.export import export_prefix, import_prefix
from foreword.export.mlx import FILE, PLAIN, top_level
from foreword.prefix import KV
from tiny import tiny_base, trained_like

GELU = ("gemma", "gpt_neox", "starcoder2")  # mlx-lm computes another GELU
# Changes of the tiny models to what mlx-lm has built in
_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("cohere", "gemma", "gemma2"), _TIED),
    **dict.fromkeys(("olmoe", "qwen2_moe", "qwen3_moe"), _EXPERTS),
    "gpt2": _TIED | {"n_inner": 256},
    "gpt_neox": {"intermediate_size": 256},
}
# What mlx-lm wants in config.json of a model that Transformers 5 has saved
_MORE: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False}
}
LOGITS = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache
from mlx_lm.utils import load_model
mx.set_default_device(mx.cpu)
given = json.load(open(sys.argv[1]))
model, _ = load_model(Path(given["model"]), model_config=given["config"])
ids = mx.array([given["ids"]])
caches = {"with": load_prompt_cache(given["cache"]), "plain": make_prompt_cache(model)}
logits = {name: model(ids, cache=cache)[0].astype(mx.float32).tolist() for name, cache in caches.items()}
print(json.dumps(logits | {"classes": sorted({type(cache).__name__ for cache in make_prompt_cache(model)})}))
"""
TEXTS = """
import json, sys
import mlx.core as mx
from mlx_lm import generate, load
from mlx_lm.models.cache import load_prompt_cache
mx.set_default_device(mx.cpu)
given = json.load(open(sys.argv[1]))
model, tokenizer = load(given["model"], model_config=given["config"])
answer = lambda ids, cache: generate(model, tokenizer, ids, prompt_cache=cache, max_tokens=16)
texts = [answer(ids, load_prompt_cache(given["cache"])) for ids in given["ids"]]
print(json.dumps([texts, [answer(ids, None) for ids in given["ids"]]]))
"""
SAVED = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, save_prompt_cache
from mlx_lm.utils import load_model
mx.set_default_device(mx.cpu)
given = json.load(open(sys.argv[1]))
model, _ = load_model(Path(given["model"]), model_config=given["config"])
cache = make_prompt_cache(model)
mx.eval(model(mx.array([given["ids"]]), cache=cache))
save_prompt_cache(given["file"], cache, {"model": given["model"], "tokenizer_config": "{}"})
print("null")
"""


def saved_model(base, folder: Path) -> dict[str, Any]:
    """Save the base, and return what mlx-lm is given to load it. Of GPT-2 it wants the names without a head."""
    model = base.model.transformer if base.model.config.model_type == "gpt2" else base.model
    model.save_pretrained(folder)
    kind = base.model.config.model_type
    return {"model": str(folder), "config": top_level(base.model.config) | _MORE.get(kind, {})}


@pytest.mark.mlx
@pytest.mark.parametrize("kind", PLAIN)
def test_a_tiny_model_of_each_architecture_gives_the_same_logits(kind, tmp_path) -> None:
    base = tiny_base(kind, **CHANGES.get(kind, {}))
    prefix, ids = trained_like(base, 7), [5, 9, 11, 4, 60, 77]
    export_prefix(prefix, "mlx", tmp_path / "out", base)
    with torch.no_grad():
        plain = base.model(torch.tensor([ids])).logits[0]
        with base.attach(prefix):
            expected = base.model(torch.tensor([ids])).logits[0]
    found = in_mlx(
        LOGITS, saved_model(base, tmp_path / "model") | {"cache": str(tmp_path / "out" / FILE), "ids": ids}, tmp_path
    )
    tolerance = 1e-2 if kind in GELU else 1e-4
    assert found["classes"] == ["KVCache"]
    size = plain.shape[-1]
    assert (torch.tensor(found["plain"])[:, :size] - plain).abs().max() < tolerance
    assert (torch.tensor(found["with"])[:, :size] - expected).abs().max() < tolerance
    assert (expected - plain).abs().max() > 0.1


@pytest.mark.mlx
@pytest.mark.smollm2
@pytest.mark.parametrize("template", ["chat", "Question: {input}\nAnswer:"])
def test_the_real_model_answers_as_foreword_does(smollm2, tmp_path, template) -> None:
    prefix = foreword.Prefix.from_text("Answer in French, with a single word.\n", smollm2)
    prefix = prefix.with_record("direct", {"template": template})
    usage = export_prefix(prefix, "mlx", tmp_path / "out", "smollm2-135m")
    assert "'rope_theta': 100000.0" in usage
    questions = ["What colour is the sky?", "Who wrote Hamlet?", "Name a fruit."]
    expected = smollm2.generate(questions, prefix, max_new_tokens=16)
    from foreword.base.asking import prepare

    rendered = [ids for ids, _ in prepare(smollm2, questions, [prefix] * len(questions), None)]
    given = {"model": str(foreword.models.bundled.ensure()), "config": top_level(smollm2.model.config)}
    said, plain = in_mlx(TEXTS, given | {"cache": str(tmp_path / "out" / FILE), "ids": rendered}, tmp_path)
    assert [text.strip() for text in said] == expected
    assert sum(text.strip() != other.strip() for text, other in zip(said, plain, strict=True)) >= 2
    # the printed code itself
    code = usage.replace("PROMPT", questions[0]).replace("max_tokens=64", "max_tokens=16")
    printed = in_mlx(f"{code.replace('print(generate', 'import json; print(json.dumps(generate')})", {}, tmp_path)
    assert printed.strip() == expected[0]


@pytest.mark.mlx
def test_what_mlx_saved_becomes_a_prefix(tmp_path) -> None:
    base, ids = tiny_base("llama"), [7, 8, 9, 10, 11]
    (tmp_path / "saved").mkdir()
    given = saved_model(base, tmp_path / "model") | {"ids": ids, "file": str(tmp_path / "saved" / "c.safetensors")}
    in_mlx(SAVED, given, tmp_path)
    prefix = import_prefix(tmp_path / "saved", base)
    rows = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = base.model(torch.tensor([[*ids, 3, 4, 5]])).logits[0, len(ids) :]
        with base.attach(prefix):
            found = base.model(rows).logits[0]
    assert prefix.length == 5
    assert (found - expected).abs().max() < 1e-4


def test_an_exported_prefix_comes_back_bit_for_bit(tmp_path) -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 6).with_record("direct", {"template": "{input} ->"})
    export_prefix(prefix, "mlx", tmp_path / "out", base)
    back = import_prefix(tmp_path / "out", base)
    assert back.digest == prefix.digest
    assert back.record["template"] == "{input} ->"
    with pytest.raises(PrefixMismatchError):
        import_prefix(tmp_path / "out", tiny_base("llama", num_key_value_heads=4))


def damaged(tmp_path, change) -> Path:
    """An exported folder whose tensors and metadata `change` has changed."""
    from safetensors import safe_open

    base = tiny_base("llama")
    export_prefix(trained_like(base, 6), "mlx", tmp_path / "good", base)
    tensors = load_file(tmp_path / "good" / FILE)
    with safe_open(tmp_path / "good" / FILE, "pt") as file:
        metadata = dict(file.metadata())
    change(tensors, metadata)
    (tmp_path / "bad").mkdir()
    save_file(tensors, tmp_path / "bad" / FILE, metadata)
    return tmp_path / "bad"


def _old(tensors, metadata) -> None:
    for name in [name for name in tensors if name.endswith(".2")]:
        del tensors[name]
    metadata.clear()
    for layer in range(3):
        metadata |= {f"0.{layer}": "", f"2.{layer}": "KVCache"}
    metadata["1.model"] = "x"


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("written by mlx-lm 0.31.3 or older", _old),
        ("holds caches of 'RotatingKVCache'", lambda tensors, metadata: metadata.update({"1.1": "RotatingKVCache"})),
        ("doesn't say which classes", lambda tensors, metadata: metadata.update({"1.7": "KVCache"})),
        ("lacks the tensor 1.1", lambda tensors, metadata: tensors.pop("1.1")),
        ("6 tokens, but tells a length of 9", lambda tensors, metadata: tensors.update({"1.2": torch.tensor(9)})),
        (
            "but tells a length of -1",
            lambda tensors, metadata: tensors.update({"1.2": torch.tensor([6.0])}),
        ),
        ("a prefix needs one row", lambda tensors, metadata: tensors.update({"1.0": torch.zeros(2, 2, 6, 16)})),
        ("NaN or infinity", lambda tensors, metadata: tensors["1.0"].fill_(torch.nan)),
    ],
)
def test_damaged_and_old_files_are_refused(tmp_path, reason, change) -> None:
    folder = damaged(tmp_path, change)
    with pytest.raises(ImportFormatError, match=reason):
        import_prefix(folder, tiny_base("llama"))


def test_what_is_no_prompt_cache_is_not_recognised(tmp_path) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ImportFormatError, match="in no format that is known here"):
        import_prefix(tmp_path, tiny_base())
    with pytest.raises(ImportFormatError, match="no prompt cache of mlx-lm"):
        import_prefix(tmp_path, tiny_base(), source="mlx")


def test_what_mlx_does_otherwise_is_refused(tmp_path) -> None:
    base = tiny_base("gemma3_text")
    refused = {
        "rotating caches": base,
        r"rotary frequencies \(yarn\)": tiny_base(
            "llama", rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}
        ),
        "tried with cohere, gemma": tiny_base("opt"),
    }
    for reason, other in refused.items():
        with pytest.raises(ExportError, match=reason):
            export_prefix(trained_like(other, 5), "mlx", tmp_path / "never", other)
    export_prefix(trained_like(tiny_base(), 5), "mlx", tmp_path / "out", tiny_base())
    with pytest.raises(ImportFormatError, match="were not tried"):
        import_prefix(tmp_path / "out", base)
    shorter = trained_like(tiny_base(), 5)
    cut = replace(shorter, slots={**shorter.slots, "decoder.0": KV(*(x[:, :2] for x in shorter.slots["decoder.0"]))})
    with pytest.raises(ExportError, match="as many tokens in every layer"):
        export_prefix(cut, "mlx", tmp_path / "never", tiny_base())


def test_the_metadata_name_the_model(tmp_path) -> None:
    from safetensors import safe_open

    base = tiny_base("llama")
    usage = export_prefix(trained_like(base, 5), "mlx", tmp_path / "out", base)
    with safe_open(tmp_path / "out" / FILE, "pt") as file:
        metadata = file.metadata()
    assert metadata["0.model"] == "tiny-llama"
    assert json.loads(metadata["0.tokenizer_config"]) == {}
    assert "base = 'tiny-llama'" in usage
