"""A real llama-server answers with an exported prefix as Foreword does."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch

import foreword
from engine_helpers import serving
from foreword.errors import ExportError
from foreword.export import BaseFiles, export_prefix
from foreword.export.alias import alias_of
from foreword.export.llamacpp import LAYOUTS, slot_file, write_slots
from foreword.models import bundled
from foreword.models.gguf_f32 import write_f32
from foreword.prefix import KV
from tiny import byte_tokenizer, tiny_base, trained_like
from tiny_gguf import CHANGES, KINDS, write_gguf

QUESTIONS = ("What colour is the sky?", "Who wrote Hamlet?", "Name a fruit.", "How many legs has a spider?", "Hello!")
GELU = ("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "starcoder2")  # llama.cpp reads GELU from a table


@pytest.mark.smollm2
def test_an_alias_is_stable_under_the_tokenizer(smollm2) -> None:
    tokenizer = smollm2.tokenizer
    aliases = [alias_of(f"{number:064x}", 12, tokenizer) for number in range(20)]
    assert len({alias.ids for alias in aliases}) == 20
    for alias in aliases:
        for after in ("", "def f(): pass", "\n\nSummary:", " x", "<|im_start|>user\n"):
            ids = tokenizer((alias.text or "") + after, add_special_tokens=False)["input_ids"]
            assert tuple(ids[:12]) == alias.ids
    assert alias_of("a", 12, tokenizer) == alias_of("a", 12, tokenizer)
    assert len(alias_of("a", 1, tokenizer).ids) == 1


def test_a_tokenizer_without_words_gives_an_alias_too() -> None:
    alias = alias_of("a", 5, byte_tokenizer())
    assert len(alias.ids) == 5
    assert byte_tokenizer()(alias.text, add_special_tokens=False)["input_ids"] == list(alias.ids)


def test_what_llamacpp_does_otherwise_is_refused(tmp_path) -> None:
    changed: dict[str, tuple[str, dict[str, Any]]] = {
        "full attention in other layers of gemma3": ("gemma3_text", {}),
        "in each fourth layer of smollm3": ("smollm3", {}),
        r"rotary frequencies \(yarn\)": (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}},
        ),
        "only 0.5 of its base's key channels turn": (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 10000.0}},
        ),
        "recurrent layers": ("qwen3_next", {}),
        "differ in width, as in latent attention": ("deepseek_v3", {}),
        "attention sinks": ("gpt_oss", {}),
        "llama.cpp doesn't run it": ("opt", {}),
    }
    for reason, (kind, changes) in changed.items():
        base = tiny_base(kind, **changes)
        with pytest.raises(ExportError, match=f"{reason}|every layer of a decoder"):
            export_prefix(trained_like(base, 5), "llamacpp", tmp_path / "never", base)
        assert not (tmp_path / "never").exists()
    base = tiny_base("llama")
    other = replace(trained_like(base, 5), base=replace(base.fingerprint, model_type="bloom"))
    with pytest.raises(ExportError, match="is known for cohere2, gemma"):
        export_prefix(other, "llamacpp", tmp_path / "never", base)
    with pytest.raises(ExportError, match="position_offset 0"):
        export_prefix(replace(trained_like(base, 5), position_offset=0), "llamacpp", tmp_path / "never", base)
    lora = replace(trained_like(base, 5), base=replace(base.fingerprint, weights="abc+lora:def"))
    for target in ("llamacpp", "mlx"):
        with pytest.raises(ExportError, match="on a base with a LoRA"):
            export_prefix(lora, target, tmp_path / "never", base)


def test_the_folder_tells_what_it_holds(tmp_path) -> None:
    base = tiny_base("llama")
    prefix = trained_like(base, 5).with_record("direct", {"template": "Q: {input}\nA:"})
    usage = export_prefix(prefix, "llamacpp", tmp_path / "out", base)
    facts = json.loads((tmp_path / "out" / "prefix.json").read_text())
    assert {entry["file"] for entry in facts["files"]} == {file.name for file in (tmp_path / "out").glob("slot*")}
    assert facts["length"] == 5
    asked = json.loads((tmp_path / "out" / "request.json").read_text())
    assert asked["prompt"] == [*facts["alias"]["ids"], "Q: PROMPT\nA:"]
    assert "timings.cache_n = 5" in usage
    assert "--swa-full" not in usage


def test_a_session_holds_the_slots_parts(tmp_path) -> None:
    """magic, version, one token more than there are cells, the architecture's name, then what the slot has."""
    base = tiny_base("llama")
    export_prefix(trained_like(base, 5), "llamacpp", tmp_path / "out", base)
    facts = json.loads((tmp_path / "out" / "prefix.json").read_text())
    sessions = {(entry["version"], entry["type"]): tmp_path / "out" / entry["file"] for entry in facts["sessions"]}
    assert set(sessions) == {(version, dtype) for version in (9, 10, 11) for dtype in ("f32", "f16")}
    for entry in facts["files"]:
        slot = (tmp_path / "out" / entry["file"]).read_bytes()
        session = sessions[entry["version"] + 7, entry["type"]].read_bytes()
        assert struct.unpack("<III", session[:12]) == (0x6767736E, entry["version"] + 7, 6)
        assert list(struct.unpack("<6i", session[12:36])) == [*facts["alias"]["ids"], facts["alias"]["ids"][0]]
        assert session[36:45] == struct.pack("<I", 5) + b"llama"
        assert session[45:] == slot[12 + 4 * 5 :]


def distribution(answer: dict[str, Any]) -> torch.Tensor:
    """Log probabilities of the first new token, NaN where the server tells none."""
    found = torch.full((260,), torch.nan)
    for entry in answer["completion_probabilities"][0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of log probabilities, where they are not negligible."""
    return float((found - expected)[expected > -30].abs().max())


@pytest.mark.llamacpp
@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_model_of_each_architecture_gives_the_same_logits(kind, tmp_path) -> None:
    base = tiny_base(kind, **CHANGES.get(kind, {}))
    prefix, ids = trained_like(base, 7), [5, 9, 11, 4, 60, 77]
    (tmp_path / "slots").mkdir()
    facts = write_slots(prefix, BaseFiles.of(base), tmp_path / "slots", ("f32",), flash=False)
    write_gguf(base.model, tmp_path / "model.gguf")
    with torch.no_grad():
        plain = base.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        with base.attach(prefix):
            expected = base.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    # the bias makes the answer the letter a, so that it is text; the log probabilities told are those without it
    told: dict[str, Any] = {"n_probs": 260, "logit_bias": [[64, 1000]]}
    more = ["--swa-full"] if facts["swa_full"] else []
    with serving(tmp_path / "model.gguf", tmp_path / "slots", "--parallel", "1", *more, flash=False) as server:
        without = distribution(server.complete(ids, 1, **told))
        assert server.restore(slot_file(2, "f32", flash=False)) == 7
        answer = server.complete([*facts["alias"]["ids"], *ids], 1, **told)
    assert answer["timings"]["cache_n"] == 7
    tolerance = 5e-3 if kind in GELU else 2e-5
    assert gap(without, plain) < tolerance
    assert gap(distribution(answer), expected) < tolerance
    assert gap(plain, expected) > 0.1


def test_each_layout_is_tried() -> None:
    """mixtral is llama to llama.cpp, as mistral is."""
    assert set(KINDS) | {"mixtral"} == set(LAYOUTS)
    assert LAYOUTS["mixtral"] == LAYOUTS["mistral"] == LAYOUTS["llama"]


@pytest.mark.llamacpp
def test_without_swa_full_a_prefix_is_dropped_and_nothing_tells(tmp_path) -> None:
    base = tiny_base("gemma3_text", **CHANGES["gemma3_text"], sliding_window=64)
    prefix = trained_like(base, 7)
    usage = export_prefix(prefix, "llamacpp", tmp_path / "slots", base)
    assert "--parallel 1 --cache-ram 0 --flash-attn on --port 8081 --swa-full\n" in usage
    write_gguf(base.model, tmp_path / "model.gguf")
    alias = json.loads((tmp_path / "slots" / "prefix.json").read_text())["alias"]["ids"]
    found = {}
    for option in ([], ["--swa-full"]):
        with serving(tmp_path / "model.gguf", tmp_path / "slots", "--parallel", "1", *option) as server:
            assert server.restore(slot_file(2, "f32")) == 7
            found[bool(option)] = server.complete([*alias, 5, 9], 1, logit_bias=[[64, 1000]])["timings"]["cache_n"]
    assert found == {False: 0, True: 7}


@pytest.fixture(scope="module")
def gguf_f32(tmp_path_factory, smollm2):
    """SmolLM2 as float32 GGUF, from the bundled Q4_1 one."""
    target = tmp_path_factory.mktemp("gguf") / "smollm2-f32.gguf"
    source = bundled.gguf()
    assert source is not None
    write_f32(source, target)
    return target


@pytest.fixture(scope="module")
def prefix(smollm2):
    """A prefix of a text, moved a little as training would."""
    made = foreword.Prefix.from_text("Answer every question with a single word in French, and be honest.\n", smollm2)
    generator = torch.Generator().manual_seed(1)
    slots = {
        name: KV(*(part + 0.1 * part.std() * torch.randn(part.shape, generator=generator) for part in kv))
        for name, kv in made.slots.items()
    }
    return replace(made, slots=slots).with_record("direct", {"template": "Question: {input}\nAnswer:"})


@pytest.mark.llamacpp
@pytest.mark.smollm2
def test_the_real_model_answers_as_foreword_does(smollm2, gguf_f32, prefix, tmp_path) -> None:
    export_prefix(prefix, "llamacpp", tmp_path / "slots", smollm2)
    asked = json.loads((tmp_path / "slots" / "request.json").read_text())
    expected = smollm2.generate(list(QUESTIONS), prefix, max_new_tokens=24)
    texts = [f"Question: {question}\nAnswer:" for question in QUESTIONS]
    plain = smollm2.generate(texts, None, template="{input}", max_new_tokens=24)
    said, alias_ids = [], asked["prompt"][:-1]
    with serving(gguf_f32, tmp_path / "slots", "--parallel", "1") as server:
        for version in (3, 4):  # this build has version 2
            status, answer = server.call("/slots/0?action=restore", {"filename": slot_file(version, "f32")})
            assert (status, "invalid slot save file" in answer["error"]["message"]) == (400, True)
        assert server.call("/slots/0?action=restore", {"filename": slot_file(2, "f16")})[0] == 400
        for text in texts:
            server.restore(slot_file(2, "f32"))
            answer = server.complete([*alias_ids, text], 24, id_slot=0)
            assert answer["timings"]["cache_n"] == prefix.length
            said.append(answer["content"].strip())
        alias = json.loads((tmp_path / "slots" / "prefix.json").read_text())["alias"]
        server.restore(slot_file(2, "f32"))
        answer = server.complete([alias["text"] + texts[0]], 24, id_slot=0)  # one text works, too
        assert (answer["timings"]["cache_n"], answer["content"].strip()) == (prefix.length, expected[0])
    assert said == expected
    assert sum(one != other for one, other in zip(expected, plain, strict=True)) >= 3  # else it would show nothing


@pytest.mark.llamacpp
@pytest.mark.smollm2
def test_an_alias_that_was_read_as_text_wins_silently(smollm2, gguf_f32, prefix, tmp_path) -> None:
    """Why the front restores before each request, in a slot of its own, and checks what was found."""
    facts_in = tmp_path / "slots"
    export_prefix(prefix, "llamacpp", facts_in, smollm2)
    alias = json.loads((facts_in / "prefix.json").read_text())["alias"]["ids"]
    text = f"Question: {QUESTIONS[0]}\nAnswer:"
    expected = smollm2.generate([QUESTIONS[0]], prefix, max_new_tokens=16)[0]
    with serving(gguf_f32, facts_in, "--parallel", "2", "--kv-unified") as server:
        server.complete([*alias, text], 16, id_slot=0)  # as ordinary text
        server.restore(slot_file(2, "f32"), slot=1)
        trapped = server.complete([*alias, text], 16)
        server.restore(slot_file(2, "f32"), slot=1)
        right = server.complete([*alias, text], 16, id_slot=1)
    assert trapped["timings"]["cache_n"] > prefix.length  # so "at least the prefix" is no proof
    assert trapped["content"].strip() != expected
    assert (right["timings"]["cache_n"], right["content"].strip()) == (prefix.length, expected)
