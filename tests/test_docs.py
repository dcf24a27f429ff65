"""docs/models.md is what the suite and the sweep found, and nothing is missing from it."""

from __future__ import annotations

import matrix
import sweep
import sweep_page
from tiny import BOTH, CASES, DECODERS, UNSUPPORTED, case_name


def test_models_page_is_rendered_from_the_cells() -> None:
    cells = matrix.load()
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.page()
    assert set(cells) == {case_name(case) for case in CASES} | {"refused", "versions"}
    assert set(cells["refused"]) == set(UNSUPPORTED)
    caches = {"dynamic cache", "static cache"}
    for case in CASES:
        expected = set(matrix.COLUMNS) - (set() if case[0] in DECODERS + BOTH else caches)
        assert set(cells[case_name(case)]) == expected, case


# What the table refused before, although it is exact
NAMED = {
    "qwen2_moe", "qwen3_moe", "olmo", "olmo3", "olmoe", "exaone4", "bitnet", "apertus", "glm", "glm4", "glm4_moe",
    "granitemoe", "minimax_m2", "dots1", "nanochat", "vaultgemma", "ministral", "gemma", "phi", "phimoe", "cohere",
    "gpt_bigcode", "helium", "seed_oss", "hunyuan_v1_dense", "ernie4_5", "nemotron", "arcee",
}  # fmt: skip


def test_the_sweep_covers_every_class() -> None:
    found = sweep_page.load()
    outcomes = {name: row["outcome"] for name, row in found["classes"].items()}
    if found["versions"]["transformers"] == sweep.installed():
        assert set(outcomes) == {f"{kind} {name}" for kind, name, _ in sweep.targets()}
    causal = {name.partition(" ")[0]: name for name, row in found["classes"].items() if row["mapping"] == "causal LM"}
    assert {kind for kind in NAMED if outcomes[causal[kind]] != "verified"} == set()
    assert outcomes[causal["diffllama"]] == outcomes[causal["doge"]] == "refused"
    assert "no result" not in outcomes.values()
