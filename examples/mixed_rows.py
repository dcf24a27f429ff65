"""Two prefixes made from texts, and one batch in which every row has its own prefix or none."""

from __future__ import annotations

import torch

import foreword

CAPITALS = "Answer with the name of a capital. Question: Italy? Answer: Rome. Question: Spain? Answer: Madrid. "
CURRENCIES = "Answer with the name of a currency. Question: Italy? Answer: euro. Question: USA? Answer: dollar. "
PROMPTS = ["Question: Japan? Answer:"] * 3


def main() -> None:
    base = foreword.load("smollm2-135m", dtype="float32", device="cpu")
    # A text in front of a prompt, and the text's keys and values as a prefix, are the same thing to the model.
    capitals = foreword.Prefix.from_text(CAPITALS, base)
    currencies = foreword.Prefix.from_text(CURRENCIES, base)
    rows = [capitals, currencies, None]  # None: the plain base

    answers = base.generate(PROMPTS, rows, template="{input}", max_new_tokens=8)
    for prompt, name, answer in zip(PROMPTS, ("capitals", "currencies", "no prefix"), answers, strict=True):
        print(f"{prompt!r} with {name}: {answer!r}")

    # The same with a call of your own within `attach`.
    inputs = base.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad(), base.attach(rows):
        mixed = base.model(**inputs).logits[:, -1]
    for number, prefix in enumerate(rows):
        with torch.no_grad(), base.attach(prefix):
            alone = base.model(**inputs).logits[number, -1]
        name = "no prefix" if prefix is None else f"{prefix.length} virtual tokens"
        difference = float((mixed[number] - alone).abs().max())
        print(f"row {number} ({name}) differs from a run of its own by {difference:.1e}")


if __name__ == "__main__":
    main()
