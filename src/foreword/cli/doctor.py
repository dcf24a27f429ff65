"""`foreword doctor`: what is installed and whether it works; the text to paste into a bug report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from foreword.cli import common, tables

if TYPE_CHECKING:
    from foreword.doctor.report import Check


def command(json: common.Json = False, debug: common.Debug = False) -> int:
    """Print versions, devices, kernels and folders, then check that things work (under a minute, no download).

    Paste the whole output into a bug report. Exits with 1 if a check fails.

    Example: foreword doctor
    """
    from foreword.doctor.report import describe

    facts, console = describe(), common.out()
    if json:
        results = list(_checks())
        common.print_json(facts | {"checks": [asdict(check) for check in results]})
        return int(not all(check.passed for check in results))
    for heading, entries in facts.items():
        console.print(heading)
        tables.print_facts(entries.items(), indent=2, aligned=15)
    console.print("checks")
    failed = 0
    for check in _checks():
        mark = "ok" if check.passed else "FAILED"
        tables.print_text(f"{check.name}: {check.seen} ({check.seconds:.1f} s)", f"  {mark:<6} ")
        failed += not check.passed
    console.print("everything works" if not failed else f"{failed} of the checks failed")
    return int(failed > 0)


def _checks() -> Iterator[Check]:
    """The self-check; an installation that can't even be imported is a failed check."""
    try:
        from transformers.utils import logging as transformers_logging

        from foreword.doctor import checks
    except Exception as error:  # noqa: BLE001 - whatever keeps the packages from being imported belongs in the report
        from foreword.doctor.report import Check

        yield Check("import", False, f"{type(error).__name__}: {common.one_line(error)}", 0.0)
        return
    transformers_logging.set_verbosity_error()
    yield from checks.run_checks()
