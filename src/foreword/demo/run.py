"""The whole demo: data, training, and a comparison with methods that need no training."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from foreword import status
from foreword.base import Base
from foreword.config import TrainConfig
from foreword.data import Reading
from foreword.demo.task import TEMPLATE, DemoData, prepare, shown
from foreword.evaluation import EvalResult, evaluate_items
from foreword.prefix import Prefix
from foreword.tasks import LanguageModelling, Measuring, TaskSettings
from foreword.training import TrainResult, train
from foreword.training.events import Observer

METRICS = ("loss", "perplexity", "rouge_l", "bleu")
MAX_NEW_TOKENS = 24
EVALUATION_BATCH = 15


@dataclass(frozen=True)
class DemoConfig:
    """steps: optimizer steps. rows: number of measured validation rows. output: run folder. seed: of rows and order."""

    steps: int = 20
    rows: int = 30
    length: int = 32
    batch_size: int = 16
    lr: float = 6e-2
    seed: int = 0
    output: str = "runs/demo"


def train_demo(base: Base, config: DemoConfig, observer: Observer | None = None) -> tuple[DemoData, TrainResult]:
    """Write the data and train the prefix."""
    data = prepare(Path(config.output), config.rows)
    return data, train(base, train_config(config, data), observer)


def compare(base: Base, data: DemoData, result: TrainResult) -> dict[str, EvalResult]:
    """Measure five contenders on the same held-out functions. The trained prefix comes last."""
    few_shot = Prefix.from_text("".join(map(shown, data.shots)), base)
    contenders: dict[str, tuple[Path, str | None, Prefix | None]] = {
        "plain base": (data.validation, TEMPLATE, None),
        "base + instruction": (data.instructed, None, None),  # as a chat, for which this base was tuned
        f"base + {len(data.shots)} examples": (data.validation, TEMPLATE, few_shot),
        "prefix, step 0": (data.validation, TEMPLATE, result.initial),
        "prefix, trained": (data.validation, TEMPLATE, result.prefix),
    }
    measured = {}
    for number, (name, contender) in enumerate(contenders.items()):
        status.doing(f"measuring {name}, {number + 1} of {len(contenders)}")
        measured[name] = _measure(base, *contender)
    return measured


def first_line(text: str) -> str:
    """Return the first line that is not empty. The task asks for one line, so the rest of an answer is dropped."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _measure(base: Base, rows: Path, template: str | None, prefix: Prefix | None) -> EvalResult:
    task = LanguageModelling(base, TaskSettings(template))
    examples, _ = task.load(str(rows), Reading())
    measuring = Measuring(EVALUATION_BATCH, MAX_NEW_TOKENS, clean=first_line)
    return evaluate_items(task, examples, prefix, METRICS, measuring)


def train_config(config: DemoConfig, data: DemoData) -> TrainConfig:
    """Return the training settings of the demo."""
    return TrainConfig(
        data=str(data.training),
        validation=str(data.validation),
        validation_rows=None,
        template=TEMPLATE,
        length=config.length,
        init_text="".join(map(shown, data.shots)),
        steps=config.steps,
        batch_size=config.batch_size,
        accumulation=4,
        lr=config.lr,
        warmup=min(5, config.steps),
        validate_every=max(1, config.steps // 2),
        seed=config.seed,
        trackers=(),
        output=str(Path(config.output) / "run"),
    )


def peak_megabytes() -> float:
    """Return the peak memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
