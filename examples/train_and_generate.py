"""Train a prefix on ten rows, save it, load it, and generate with and without it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import foreword

ROWS = {
    "name: The Mill, food: Italian, price: cheap": "The Mill serves cheap Italian food.",
    "name: Blue Door, food: French, price: high": "Blue Door serves expensive French food.",
    "name: Aroma, food: Indian, price: moderate": "Aroma serves moderately priced Indian food.",
    "name: The Anchor, food: English, price: cheap": "The Anchor serves cheap English food.",
    "name: Green Man, food: Chinese, price: high": "Green Man serves expensive Chinese food.",
    "name: Cotto, food: Japanese, price: moderate": "Cotto serves moderately priced Japanese food.",
    "name: Zizzi, food: Italian, price: high": "Zizzi serves expensive Italian food.",
    "name: The Olive, food: Greek, price: cheap": "The Olive serves cheap Greek food.",
    "name: Strada, food: Thai, price: high": "Strada serves expensive Thai food.",
    "name: The Rice Boat, food: Indian, price: cheap": "The Rice Boat serves cheap Indian food.",
}
NEW = "name: The Lantern, food: Spanish, price: moderate"


def main() -> None:
    base = foreword.load("smollm2-135m", dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.jsonl"
        lines = [json.dumps({"input": given, "target": wanted}) for given, wanted in ROWS.items()]
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        config = foreword.TrainConfig(
            data=str(data),
            validation=str(data),  # ten rows are too few to hold any out: this shows that it learns, not how well
            template="{input}\nSentence:",
            length=8,
            steps=20,
            batch_size=5,
            warmup=2,
            trackers=(),
            output=str(Path(folder) / "run"),
        )
        result = foreword.train(base, config)
        result.prefix.save(Path(folder) / "restaurants")
        prefix = foreword.Prefix.load(Path(folder) / "restaurants")

    print(f"{prefix.length} virtual tokens, {prefix.num_bytes:,} bytes, method {prefix.method}")
    with_prefix, plain = base.generate(
        [NEW, NEW], prefix=[prefix, None], template="{input}\nSentence:", max_new_tokens=16
    )
    print("with the prefix:", with_prefix)
    print("plain base:     ", plain)


if __name__ == "__main__":
    main()
