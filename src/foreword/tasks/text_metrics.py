"""Text metrics, computed by the libraries that define them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foreword.extras import require

References = Sequence[Sequence[str]]


def bleu(texts: Sequence[str], references: References) -> tuple[float, str]:
    """Return (corpus BLEU in 0…100, sacrebleu's signature); Papineni et al. 2002, Post 2018."""
    metrics = require("sacrebleu.metrics", "to measure BLEU")
    return _sacrebleu(metrics.BLEU(), texts, references)


def chrf(texts: Sequence[str], references: References) -> tuple[float, str]:
    """Return (corpus chrF2 in 0…100, sacrebleu's signature); Popović 2015."""
    metrics = require("sacrebleu.metrics", "to measure chrF")
    return _sacrebleu(metrics.CHRF(), texts, references)


def rouge_l(texts: Sequence[str], references: References) -> float:
    """Return the mean ROUGE-L F1 in 0…100, with the best reference of each row; Lin 2004."""
    scorer = require("rouge_score.rouge_scorer", "to measure ROUGE-L").RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        max(scorer.score(reference, text)["rougeL"].fmeasure for reference in row)
        for text, row in zip(texts, references, strict=True)
    ]
    return float(100 * sum(scores) / len(scores))


def exact_match(texts: Sequence[str], references: References) -> float:
    """Return the share of rows, in 0…100, whose text equals a reference up to surrounding white space."""
    hits = [
        text.strip() in {reference.strip() for reference in row} for text, row in zip(texts, references, strict=True)
    ]
    return 100 * sum(hits) / len(hits)


def _sacrebleu(metric: Any, texts: Sequence[str], references: References) -> tuple[float, str]:
    most = max(len(row) for row in references)
    # one stream per reference number; None where a row has fewer
    streams = [[row[index] if index < len(row) else None for row in references] for index in range(most)]
    score = metric.corpus_score(list(texts), streams)
    return float(score.score), str(metric.get_signature())
