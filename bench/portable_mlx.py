"""The column of mlx-lm in portable.py: run by a Python that has mlx-lm, on the JSON file argv[1]; prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm import generate, load
from mlx_lm.models.cache import load_prompt_cache


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(given["model"], model_config=given["config"])
    model.set_dtype(mx.float32)
    texts = []
    for ids in given["ids"]:
        cache = load_prompt_cache(given["cache"])  # anew: generation writes into it
        texts.append(generate(model, tokenizer, ids, prompt_cache=cache, max_tokens=given["tokens"]))
    print(json.dumps(texts))


if __name__ == "__main__":
    main()
