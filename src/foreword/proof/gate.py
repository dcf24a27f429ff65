"""The gate that every model passes before a prefix is attached."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from foreword import status
from foreword.errors import ForewordError, UnsupportedModelError
from foreword.models.architectures import dispatching, listed, refusal, remember
from foreword.models.slots import find_slots
from foreword.proof import remembered
from foreword.proof.checks import CheckFailed, Checks
from foreword.proof.company import in_company
from foreword.proof.nature import inferred
from foreword.proof.remembered import Outcome
from foreword.proof.small import small_model, uncovered
from foreword.proof.trial import Trial

SPREADS = (0.2, 0.08)  # deviations of the weights: with the first, rounding may grow too much in some models


def require_proof(model: Any) -> None:
    """Let an architecture of the table pass. Try any other, or remember that it was tried.

    model: a Transformers model, also with meta tensors. Afterwards `architecture_of(model)` returns its architecture.
    Raises `UnsupportedModelError`, which says which check failed.
    """
    if listed(model.config) is not None:
        return
    key = remembered.identity(model)
    outcome = remembered.recall(key)
    if outcome is None:
        status.doing(f"trying attention of type {model.config.model_type} with a tiny model, once")
        outcome = prove(model)
        remembered.store(key, outcome)
    if outcome.architecture is None:
        raise refusal(model, outcome.reason)
    remember(model, outcome.architecture)


def prove(model: Any) -> Outcome:
    """Try the architecture of `model` with tiny random models of its class. The global random state stays as it was."""
    if not dispatching(model):
        return Outcome(None, "no attention of it dispatches through AttentionInterface")
    if model.config.get_text_config() is not model.config and not model.config.is_encoder_decoder:
        return Outcome(None, f"its text part is of type {model.config.get_text_config().model_type!r}; load that alone")
    outcome = Outcome(None)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        for spread in SPREADS:
            attempt = _attempt(model, spread)
            if attempt.architecture is not None:
                return attempt
            outcome = outcome if outcome.reason else attempt
    return outcome


def _attempt(model: Any, spread: float) -> Outcome:
    stage = "no small model of its kind can be built"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = small_model(model, spread)
            stage = "a small model of its kind can't be run"
            trial = Trial(small)
            architecture = inferred(trial)
            if missing := uncovered(model, small, architecture.classes):
                return Outcome(None, f"the small model that it would be tried with has no {missing}")
            stage = "a small model of its kind can't be run with a prefix"
            checks = Checks(trial, architecture, find_slots(small, architecture))
            checks.plain()
            in_company(checks)
            return Outcome(checks.rest())
    except CheckFailed as failure:
        return Outcome(None, f"tried with a tiny model, {failure}")
    except UnsupportedModelError as refused:
        return Outcome(None, str(refused))
    except ForewordError as error:
        return Outcome(None, f"{stage} ({type(error).__name__}: {error})")
    except Exception as error:  # noqa: BLE001  a model may raise anything; whatever it is, there is no proof
        return Outcome(None, f"{stage} ({type(error).__name__}: {_line(error)})")


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
