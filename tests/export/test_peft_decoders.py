"""PEFT's prefix tuning of T5, BART and mBART: trained in PEFT and read here, and the other way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import foreword
from foreword.base import Base
from foreword.errors import ExportError
from foreword.export import export_prefix, import_prefix
from foreword.prefix import Prefix
from parity_helpers import only
from peft_helpers import CONTROL, LENGTH, TOLERANCE, attached, batch_of, difference, logits_of, trained_adapter
from tiny import random_batch, tiny_base, tiny_model, trained_like
from training_helpers import settings, write_rows

peft = pytest.importorskip("peft", minversion="0.21")

KINDS = ("t5", "bart", "mbart")
Tokens = dict[str, torch.Tensor]


def layers_of(kind: str, encoder: int, decoder: int) -> dict[str, Any]:
    names = ("num_layers", "num_decoder_layers") if kind == "t5" else ("encoder_layers", "decoder_layers")
    return dict(zip(names, (encoder, decoder), strict=True))


def config_of(**more: Any) -> Any:
    return peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, **more)


def made(base: Base) -> Prefix:
    """A prefix of another one in each layer of the decoder, behind which the tokens stand."""
    return replace(only(trained_like(base, LENGTH), "decoder"), position_offset=LENGTH)


def padded(kind: str) -> Tokens:
    """Rows whose decoder tokens are padded too."""
    batch = batch_of(kind)
    return batch | {"decoder_attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])}


def same(kind: str, model: Any, base: Base, prefix: Prefix) -> None:
    """PEFT's `model` and `prefix` give the same logits and tokens; the same at offset 0 or without it are others."""
    for batch in (batch_of(kind), padded(kind)):
        mask = batch.get("decoder_attention_mask", torch.ones(2, 6)).bool().flatten()
        expected = logits_of(model, batch)[mask]
        found, plain = attached(base, prefix, batch)[mask], logits_of(base.model, batch)[mask]
        unmoved = attached(base, replace(prefix, position_offset=0), batch)[mask]
        print(f"{kind}: {difference(found, expected):.1e}, control {difference(unmoved, expected):.2g}")
        assert difference(found, expected) < TOLERANCE
        assert difference(plain, expected) > CONTROL
        assert difference(unmoved, expected) > CONTROL
    prompts = random_batch([9, 5])
    for options in ({}, {"num_beams": 3}):
        settings = {"max_new_tokens": 8, "do_sample": False} | options
        with base.attach(prefix):
            tokens = base.model.generate(**prompts, **settings)
        assert torch.equal(model.generate(**prompts, **settings), tokens)
    assert not torch.equal(base.model.generate(**prompts, **settings), tokens)


@pytest.mark.parametrize(("encoder", "decoder"), [(3, 3), (2, 2), (4, 2), (3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_trained_is_read_and_goes_back(kind, encoder, decoder, tmp_path: Path) -> None:
    changes = layers_of(kind, encoder, decoder)
    model = trained_adapter(kind, config_of(), tmp_path / "trained", **changes)
    base = tiny_base(kind, **changes)
    prefix = import_prefix(tmp_path / "trained", base)
    assert list(prefix.slots) == [f"decoder.{layer}" for layer in range(decoder)]
    assert (prefix.length, prefix.position_offset, prefix.method) == (LENGTH, LENGTH, "prefix_tuning")
    first, second = prefix.slots["decoder.0"].key, prefix.slots["decoder.1"].key
    assert torch.equal(first, second) == (encoder == decoder == 2)  # PEFT gives both layers one prefix
    same(kind, model, base, prefix)
    export_prefix(prefix, "peft", tmp_path / "back", base)
    back = peft.PeftModel.from_pretrained(tiny_model(kind, **changes), tmp_path / "back").eval()
    same(kind, back, base, prefix)
    again = import_prefix(tmp_path / "back", base)
    assert again.digest == prefix.digest
    if encoder == decoder == 3:
        names = ("trained", "back")
        tables = [load_file(tmp_path / name / "adapter_model.safetensors")["prompt_embeddings"] for name in names]
        assert torch.equal(*tables)


@pytest.mark.parametrize("layers", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_of_different_layers_goes_to_peft(kind, layers, tmp_path: Path) -> None:
    """Also of an even number of layers, in a longer table, of which PEFT uses these."""
    changes = layers_of(kind, layers, layers)
    base = tiny_base(kind, **changes)
    prefix = made(base)
    export_prefix(prefix, "peft", tmp_path / "out", base)
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (told["num_layers"], told["num_transformer_submodules"]) == (2 * layers - 1 if layers % 2 == 0 else 3, 2)
    model = peft.PeftModel.from_pretrained(tiny_model(kind, **changes), tmp_path / "out").eval()
    same(kind, model, base, prefix)
    assert import_prefix(tmp_path / "out", base).digest == prefix.digest


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_through_a_network(kind, tmp_path: Path) -> None:
    config = config_of(prefix_projection=True, encoder_hidden_size=48, num_layers=3)
    model, base = trained_adapter(kind, config, tmp_path), tiny_base(kind)
    same(kind, model, base, import_prefix(tmp_path, base))


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_does_not_do_is_refused(kind, tmp_path: Path) -> None:
    base = tiny_base(kind)
    prefix = made(base)
    fewer = {name: kv for name, kv in prefix.slots.items() if name != "decoder.1"}
    for other, reason in (
        (replace(prefix, position_offset=0), "tokens up by its length 5, but this one has position_offset 0"),
        (replace(prefix, slots=fewer), "in every layer of the decoder"),
        (replace(trained_like(base, LENGTH), position_offset=LENGTH), "this one has keys in cross and encoder too"),
    ):
        with pytest.raises(ExportError, match=reason):
            export_prefix(other, "peft", tmp_path / "never", base)
    with pytest.raises(ExportError, match="an encoder–decoder has two caches"):
        export_prefix(prefix, "transformers", tmp_path / "never", base)
    with pytest.raises(ExportError, match="an encoder–decoder has two caches"):
        prefix.to_cache(base)
    assert not (tmp_path / "never").exists()


def test_the_printed_code_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    base = tiny_base("t5")
    prefix = made(base)
    usage = export_prefix(prefix, "peft", tmp_path / "out", base)
    monkeypatch.setattr("transformers.AutoModelForSeq2SeqLM.from_pretrained", lambda _: tiny_model("t5"))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda _: base.tokenizer)
    exec(usage.replace("max_new_tokens=64", "max_new_tokens=8"), {})  # noqa: S102
    assert base.generate(["PROMPT"], prefix, max_new_tokens=8)[0] in capsys.readouterr().out


def test_one_behind_the_other() -> None:
    """Each key of T5's prefixes keeps its distance to the other prefix and to the tokens, as in one that was longer."""
    base, batch = tiny_base("t5"), batch_of("t5")
    whole = made(base)
    pieces = [
        replace(whole, slots={name: type(kv)(*(part[:, cut] for part in kv)) for name, kv in whole.slots.items()})
        for cut in (slice(0, 2), slice(2, LENGTH))
    ]
    first, second = (replace(piece, position_offset=piece.length) for piece in pieces)
    joined = foreword.concat(first, second, base)
    assert difference(attached(base, joined, batch), attached(base, whole, batch)) == 0
    with pytest.raises(foreword.errors.PositionError, match="one behind the other"):
        foreword.concat(first, replace(second, position_offset=0), base)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_training_goes_on_from_an_import(kind, tmp_path: Path) -> None:
    """With the offset that PEFT trained at, and back to PEFT."""
    model = trained_adapter(kind, config_of(num_layers=3), tmp_path / "trained")
    base = tiny_base(kind)
    start = import_prefix(tmp_path / "trained", base)
    more: dict[str, Any] = {
        "init": "prefix",
        "init_prefix": str(start.save(tmp_path / "start")),
        "length": LENGTH,
        "steps": 4,
    }
    prefix = foreword.train(base, settings(write_rows(tmp_path), **more)).prefix
    assert (prefix.position_offset, prefix.slots.keys()) == (LENGTH, start.slots.keys())
    batch = batch_of(kind)
    assert difference(attached(base, prefix, batch), logits_of(model, batch)) > CONTROL
    export_prefix(prefix, "peft", tmp_path / "back", base)
    back = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "back").eval()
    same(kind, back, base, prefix)
