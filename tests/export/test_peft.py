"""What is exported gives the same logits in PEFT, and what PEFT can't hold is refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import foreword
from foreword.errors import ExportError
from foreword.export import export_prefix, import_prefix
from foreword.prefix import KV, Prefix
from peft_helpers import BOTH, CONTROL, LENGTH, TOLERANCE, attached, batch_of, difference, logits_of
from tiny import VARIANTS, random_batch, tiny_base, tiny_model, trained_like

peft = pytest.importorskip("peft", minversion="0.21")  # with older ones Gemma 3 fails

DECODERS = ["llama", "qwen3", "gpt2", "gemma3_text", "mistral", "opt", "gpt_oss", "bloom", "falcon", "mpt", "phi3"]
PROMPTS = {"mistral-window8": ("mistral", VARIANTS["mistral", "window8"]), "gemma3_text": ("gemma3_text", {}),
           "t5": ("t5", {}), "bart": ("bart", {}), "mbart": ("mbart", {}), "jamba": ("jamba", {})}  # fmt: skip


def prompt_of(base, seed: int = 5) -> Prefix:
    """An inserted prompt of input embeddings, as large as the base's own."""
    generator = torch.Generator().manual_seed(seed)
    table = base.model.get_input_embeddings()
    with torch.no_grad():
        spread = table(torch.arange(200)).std()
    embeddings = torch.randn(LENGTH, base.embedding_width, generator=generator) * spread
    return Prefix({}, 0, base.fingerprint, merge="embedding", extras={"embeddings": embeddings}, method="prompt")


def same_in_peft(kind: str, prefix: Prefix, base, folder, **changes) -> None:
    """Export, load with PEFT into a fresh model, and compare logits; also with the prefix left out, and moved."""
    export_prefix(prefix, "peft", folder, base)
    model = peft.PeftModel.from_pretrained(tiny_model(kind, **changes), folder).eval()
    batch = batch_of(kind)
    found, expected = logits_of(model, batch), attached(base, prefix, batch)
    plain = logits_of(base.model, batch)
    print(f"{kind} {prefix.merge}: {difference(found, expected):.1e}, control {difference(found, plain):.2g}")
    assert difference(found, expected) < TOLERANCE
    assert difference(found, plain) > CONTROL
    if prefix.position_offset and base.model_slots.explicit_positions:
        assert difference(attached(base, replace(prefix, position_offset=0), batch), found) > CONTROL


def same_tensors(first: Prefix, second: Prefix) -> None:
    left, right = dict(first.tensors()), dict(second.tensors())
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name])
    assert first.position_offset == second.position_offset
    assert first.digest == second.digest


@pytest.mark.parametrize("kind", DECODERS)
def test_keys_and_values_are_prefix_tuning(kind, tmp_path) -> None:
    base = tiny_base(kind)
    prefix = trained_like(base, LENGTH)
    same_in_peft(kind, prefix, base, tmp_path / "out")
    same_tensors(import_prefix(tmp_path / "out", base), prefix)


@pytest.mark.parametrize("case", PROMPTS)
def test_inserted_prompts_are_prompt_tuning(case, tmp_path) -> None:
    kind, changes = PROMPTS[case]
    base = tiny_base(kind, **changes)
    prefix = prompt_of(base)
    same_in_peft(kind, prefix, base, tmp_path / "out", **changes)
    same_tensors(import_prefix(tmp_path / "out", base), prefix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_what_it_is(dtype, tmp_path) -> None:
    base = tiny_base()
    prefix = trained_like(base, LENGTH).to(dtype)
    same_in_peft("llama", prefix, base, tmp_path / "out")
    same_tensors(import_prefix(tmp_path / "out", base), prefix)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_peft_generates_the_same(kind, tmp_path) -> None:
    base = tiny_base(kind)
    prefix, batch = trained_like(base, LENGTH), random_batch([9, 5], side="left")
    export_prefix(prefix, "peft", tmp_path / "out", base)
    model = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "out").eval()
    with base.attach(prefix):
        expected = base.model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**batch, max_new_tokens=8, do_sample=False), expected)
    assert not torch.equal(base.model.generate(**batch, max_new_tokens=8, do_sample=False), expected)


def test_the_files_name_no_place(tmp_path) -> None:
    base = tiny_base()
    for source, told in (
        ("/home/me/model", None),
        ("./model", None),
        ("smollm2-135m", None),
        ("org/model", "org/model"),
    ):
        prefix = trained_like(base, LENGTH)
        prefix = replace(prefix, base=replace(prefix.base, source=source))
        out = tmp_path / source.replace("/", "-")
        export_prefix(prefix, "peft", out, base)
        assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == told
        assert {file.name for file in out.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "ask.py",
        }  # fmt: skip
        assert "/home/me" not in (out / "ask.py").read_text() or source == "/home/me/model"
        assert b"/home/me" not in b"".join(file.read_bytes() for file in out.iterdir())


def test_the_window_is_told(tmp_path) -> None:
    base = tiny_base("mistral", sliding_window=64)
    assert "a window of 64 tokens lose the prefix" in export_prefix(trained_like(base, 5), "peft", tmp_path / "a", base)
    base = tiny_base("llama")
    assert "tokens lose the prefix" not in export_prefix(trained_like(base, 5), "peft", tmp_path / "b", base)
    base = tiny_base("mistral", sliding_window=64)  # an inserted prompt stands in the window here too
    assert "tokens lose the prefix" not in export_prefix(prompt_of(base), "peft", tmp_path / "c", base)


def test_peft_forgets_a_prefix_beyond_the_window_as_usage_says(tmp_path) -> None:
    base = tiny_base("mistral", sliding_window=8)
    prefix = trained_like(base, LENGTH)
    export_prefix(prefix, "peft", tmp_path / "out", base)
    model = peft.PeftModel.from_pretrained(tiny_model("mistral", sliding_window=8), tmp_path / "out").eval()
    short, long = batch_of("mistral", (3, 2)), batch_of("mistral", (9, 6))
    assert difference(logits_of(model, short), attached(base, prefix, short)) < TOLERANCE
    assert difference(logits_of(model, long), attached(base, prefix, long)) > CONTROL


def refused(prefix: Prefix, base, folder, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        export_prefix(prefix, "peft", folder / "never", base)
    assert not (folder / "never").exists()


def test_what_prefix_tuning_cannot_hold_is_refused(tmp_path) -> None:
    base = tiny_base()
    prefix = trained_like(base, LENGTH)
    first = next(iter(prefix.slots))
    shorter = KV(*(part[:, :3] for part in prefix.slots[first]))
    half = KV(*(part.bfloat16() for part in prefix.slots[first]))
    gates = {f"{name}.gate": torch.zeros(4) for name in prefix.slots}
    memory = {f"{name}.memory": torch.zeros(4, 16, 16) for name in prefix.slots}
    condition = {"left": (5, 2), "inner": (3, 64), "inner_bias": (3,), "outer": (2, 3), "outer_bias": (2,)}
    condition |= {f"right.{name}": (2, 64) for name in prefix.slots}
    network = {f"condition.{name}": torch.zeros(shape) for name, shape in condition.items()}
    for reason, other in {
        "every layer": replace(prefix, slots={name: kv for name, kv in prefix.slots.items() if name != first}),
        "as many tokens": replace(prefix, slots={**prefix.slots, first: shorter}),
        "position_offset 0": replace(prefix, position_offset=0),
        "gates stand outside": replace(prefix, merge="gated", extras=gates),
        "its matrices act on queries": Prefix({}, 0, base.fingerprint, merge="memory", extras=memory),
        "a network reads the input": replace(prefix, merge="conditioned", extras=network),
        "this prefix has float64": prefix.to(torch.float64),
        "bfloat16 and float32": replace(prefix, slots={**prefix.slots, first: half}),
        "base with a LoRA": replace(prefix, base=replace(prefix.base, weights="sha256:0+lora:1")),
    }.items():
        refused(other, base, tmp_path, reason)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("t5", {}, "this one has keys in cross and encoder too"),
        ("bart", {}, "this one has keys in cross and encoder too"),
        ("whisper", {}, "this one has keys in cross and encoder too"),
        ("bert", {}, "every layer of a decoder"),
        ("deepseek_v3", {}, "differ in width"),
        ("falcon_h1", {}, "recurrent layers"),
        ("jamba", {}, "every layer of a decoder"),
        ("gemma4_text", {}, "every layer of a decoder"),
        ("gemma4_text", {"num_kv_shared_layers": 0}, "as many heads of one width in every layer"),
        ("mistral", {"sliding_window": 5}, "the base's window of 5"),
        ("llama4_text", {"attention_chunk_size": 4}, "the base's window of 4"),
    ],
)
def test_bases_that_prefix_tuning_cannot_serve_are_refused(kind, changes, reason, tmp_path) -> None:
    base = tiny_base(kind, **changes)
    refused(trained_like(base, LENGTH), base, tmp_path, reason)


def test_prompts_that_stand_elsewhere_are_refused(tmp_path) -> None:
    base = tiny_base("mistral", sliding_window=8)
    prompt = prompt_of(base)
    refused(prompt.with_record("prompt", {"template": "[V][V] {input}"}), base, tmp_path, "places for them")
    refused(replace(prompt, position_offset=3), base, tmp_path, "counts positions from 0")
    refused(prompt.to(torch.float64), base, tmp_path, "this prefix has float64")
    encoder = tiny_base("bert")
    refused(prompt_of(encoder), encoder, tmp_path, r"behind \[CLS\]")


def test_an_unknown_base_is_asked_for(tmp_path) -> None:
    prefix = trained_like(tiny_base(), LENGTH)
    prefix = replace(prefix, base=replace(prefix.base, source=None))
    with pytest.raises(ExportError, match="say where the base is with --model"):
        export_prefix(prefix, "peft", tmp_path / "never")


@pytest.mark.parametrize("template", ["chat", "Q: {input}\nA:", None])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_printed_code_runs(kind, template, tmp_path, monkeypatch, capsys) -> None:
    base = tiny_base(kind, chat=True)
    prefix = prompt_of(base) if kind in BOTH else trained_like(base, LENGTH)
    prefix = prefix.with_record("direct", {} if template is None else {"template": template})
    usage = export_prefix(prefix, "peft", tmp_path / "out", base)
    auto = "AutoModelForSeq2SeqLM" if kind in BOTH else "AutoModelForCausalLM"
    monkeypatch.setattr(f"transformers.{auto}.from_pretrained", lambda _: tiny_model(kind))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda _: base.tokenizer)
    exec(usage.replace("max_new_tokens=64", "max_new_tokens=8"), {})  # noqa: S102
    printed = capsys.readouterr().out.rstrip("\n")
    expected = base.generate(["PROMPT"], prefix, template=template or "{input}", max_new_tokens=8)[0]
    assert len(expected) > 2
    assert expected in printed


@pytest.mark.smollm2
def test_the_real_model_gives_the_same_logits(smollm2, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    prefix = foreword.Prefix.from_text("Answer every question with a single word in French.\n", smollm2)
    usage = export_prefix(prefix, "peft", tmp_path / "out", smollm2)
    place = usage.partition("\nbase = ")[2].partition("\n")[0].strip("'")
    model = AutoModelForCausalLM.from_pretrained(place, dtype=smollm2.dtype)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    batch = smollm2.tokenizer("Question: What colour is the sky?\nAnswer:", return_tensors="pt")
    expected = attached(smollm2, prefix, batch)
    print(f"smollm2: {difference(logits_of(model, batch), expected):.1e}")
    assert difference(logits_of(model, batch), expected) < TOLERANCE
    assert difference(logits_of(smollm2.model, batch), expected) > CONTROL


def test_the_layout_is_that_of_pefts_own_function(tmp_path) -> None:
    from peft.tuners.cartridge.utils import prompt_embeddings_from_past_key_values
    from transformers import DynamicCache

    base = tiny_base("qwen3")
    prefix = trained_like(base, LENGTH)
    export_prefix(prefix, "peft", tmp_path / "out", base)
    cache = DynamicCache([(kv.key[None], kv.value[None]) for kv in prefix.slots.values()])
    expected = prompt_embeddings_from_past_key_values(
        [(layer.keys, layer.values) for layer in cache.layers], num_virtual_tokens=LENGTH
    )
    assert torch.equal(load_file(tmp_path / "out" / "adapter_model.safetensors")["prompt_embeddings"], expected)
