"""What is exported runs in Transformers alone, and what can't be exported is refused with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache

import foreword
from foreword.cli.main import execute
from foreword.errors import ConfigError, ExportError
from foreword.export import export_prefix
from foreword.prefix import KV
from tiny import tiny_base, trained_like


def continued(model, file, ids: torch.Tensor, new: int) -> list[int]:
    """Greedy tokens with the cache in `file`, by the code that `usage` prints."""
    tensors, cache = load_file(file), DynamicCache(config=model.config)
    for layer in range(len(tensors) // 2):
        cache.update(tensors[f"key.{layer}"], tensors[f"value.{layer}"], layer)
    ids = torch.cat([torch.zeros(1, cache.get_seq_length(), dtype=ids.dtype), ids], dim=1)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=new, do_sample=False
    )
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_transformers_alone_gives_the_same_tokens(kind, tmp_path) -> None:
    base = tiny_base(kind)
    prefix, ids = trained_like(base, 7), torch.tensor([[5, 9, 11, 4]])
    usage = export_prefix(prefix, "transformers", tmp_path / "out")
    assert f"folder = {str(tmp_path / 'out')!r}" in usage
    assert "{folder}/cache.safetensors" in usage
    with base.attach(prefix):
        expected = base.model.generate(ids, max_new_tokens=12, do_sample=False)[0, 4:].tolist()
    plain = base.model.generate(ids, max_new_tokens=12, do_sample=False)[0, 4:].tolist()
    assert continued(base.model, tmp_path / "out" / "cache.safetensors", ids, 12) == expected
    assert expected != plain


@pytest.mark.smollm2
def test_the_real_model_gives_the_same_tokens(smollm2, tmp_path) -> None:
    prefix = foreword.Prefix.from_text("Answer every question with a single word in French.\n", smollm2)
    export_prefix(prefix, "transformers", tmp_path / "out")
    ids = smollm2.tokenizer("Question: What colour is the sky?\nAnswer:", return_tensors="pt")["input_ids"]
    with smollm2.attach(prefix):
        expected = smollm2.model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :].tolist()
    assert continued(smollm2.model, tmp_path / "out" / "cache.safetensors", ids, 16) == expected


@pytest.mark.smollm2
@pytest.mark.parametrize("template", ["chat", "Q: {input}\nA:", None])
def test_the_printed_code_renders_as_training_did(smollm2, tmp_path, monkeypatch, capsys, template) -> None:
    record = {} if template is None else {"template": template}
    prefix = foreword.Prefix.from_text("Answer in French.\n", smollm2).with_record("direct", record)
    usage = export_prefix(prefix, "transformers", tmp_path / "out")
    stands = {"AutoModelForCausalLM": smollm2.model, "AutoTokenizer": smollm2.tokenizer}
    for name, thing in stands.items():
        monkeypatch.setattr(f"transformers.{name}.from_pretrained", lambda _, thing=thing: thing)
    exec(usage.replace("max_new_tokens=64", "max_new_tokens=12"), {})  # noqa: S102
    question = template or "{input}"
    expected = smollm2.generate(["PROMPT"], prefix, template=question, max_new_tokens=12)[0]
    assert expected
    assert expected in capsys.readouterr().out


def test_what_a_cache_cannot_hold_is_refused(tmp_path) -> None:
    base = tiny_base()
    prefix = trained_like(base, 5)
    first = next(iter(prefix.slots))
    shorter = KV(*(part[:, :3] for part in prefix.slots[first]))
    refused = {
        "every layer": replace(prefix, slots={name: kv for name, kv in prefix.slots.items() if name != first}),
        "as many tokens": replace(prefix, slots={**prefix.slots, first: shorter}),
        "position_offset 0": replace(prefix, position_offset=0),
        "gates stand outside": replace(
            prefix, merge="gated", extras={f"{name}.gate": torch.zeros(4) for name in prefix.slots}
        ),
    }
    for reason, other in refused.items():
        with pytest.raises(ExportError, match=reason):
            export_prefix(other, "transformers", tmp_path / "never")
        assert not (tmp_path / "never").exists()
    with pytest.raises(ConfigError, match="to: 'gguf' is not known; choose from transformers"):
        export_prefix(prefix, "gguf", tmp_path / "never")
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="exists; name a new folder"):
        export_prefix(prefix, "transformers", tmp_path / "there")


def test_the_command(tmp_path, capsys) -> None:
    trained_like(tiny_base(), 5).save(tmp_path / "p")
    assert execute(["export", str(tmp_path / "p"), "--output", str(tmp_path / "out")]) == 0
    assert "DynamicCache" in capsys.readouterr().out
    assert (tmp_path / "out" / "cache.safetensors").is_file()
    assert execute(["export", str(tmp_path / "p"), "--output", str(tmp_path / "out")]) == 1
    assert "exists; name a new folder" in capsys.readouterr().err
