"""One description of each setting, and what is made of it: checks, flags, help, and what may change on resumption."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from foreword import config as configs
from foreword.cli.flags import flag_of
from foreword.cli.main import execute
from foreword.config import CompressConfig, DataConfig, EvalConfig, TrainConfig
from foreword.errors import ConfigError
from foreword.settings import about_data, build, check, defaults, describe, free_on_resume, of_each_task, setting

KINDS = (TrainConfig, EvalConfig, CompressConfig)
GROUPS = {
    configs.BASE, configs.DATA, configs.MODEL, configs.METHOD, configs.START, configs.STEPS, configs.SAVING,
    configs.MEASURE, configs.PICK,
}  # fmt: skip
COMMANDS = {TrainConfig: "train", EvalConfig: "eval", CompressConfig: "compress"}
# Settings that only make sense beside another one
COMPANIONS: dict[str, dict[str, Any]] = {"output": {"keep_loss": 0.01}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_is_described(kind) -> None:
    described = describe(kind)
    assert list(described) == [item.name for item in dataclasses.fields(kind)]
    for name, about in described.items():
        assert re.fullmatch(r"\S.*\.", about.help, re.DOTALL), name
        assert about.group in GROUPS, name


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_the_class(kind) -> None:
    made = kind()
    assert defaults(kind) == {name: getattr(made, name) for name in describe(kind)}


def test_what_may_change_when_a_run_goes_on() -> None:
    assert free_on_resume(TrainConfig) == {
        "output",
        "resume",
        "device",
        "trackers",
        "checkpoint_every",
        "keep_checkpoints",
        "prefix_dtype",
        "max_bad_rows",
        "shard_base",
        "samples",
        "store",
    }


def test_what_is_of_the_data() -> None:
    rows = {"data", "template", "input_field", "target_field", "shape", "turns"}
    shared = rows | {"max_bad_rows", "max_tokens", "batch_size"}
    assert about_data(EvalConfig) == shared
    assert about_data(TrainConfig) == shared | {"validation", "validation_rows", "seed"}
    assert about_data(CompressConfig) == shared | {"validation", "validation_rows", "seed"}


def test_what_each_task_of_a_mixture_may_have() -> None:
    own = {"task", "task_options", "data", "template", "input_field", "target_field", "shape", "turns"}
    assert of_each_task(TrainConfig) == own | {"validation"}
    assert of_each_task(DataConfig) == own


@pytest.mark.parametrize("kind", COMMANDS)
def test_help_shows_the_flag_of_every_setting_that_has_one(kind, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")
    assert execute([COMMANDS[kind], "--help"]) == 0
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out))
    ignored = ("task", "task_options") if kind is CompressConfig else ()  # compressing measures by lm alone
    about = {name: item for name, item in describe(kind).items() if name not in ignored}
    expected = {flag_of(name, item) for name, item in about.items() if item.flag is not None}
    assert expected <= shown
    without = {f"--{name.replace('_', '-')}" for name, item in about.items() if item.flag is None}
    assert not without & shown
    assert not any("_" in flag for flag in expected)


def config_of(monkeypatch, *arguments: str) -> TrainConfig:
    """The config that `foreword train` makes of its flags; nothing is trained."""
    from foreword.cli import train as module

    made: list[TrainConfig] = []
    real = module._config

    def stopped(*given):
        made.append(real(*given))
        raise ConfigError("stop", "here")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_config", stopped)
        assert execute(["train", *arguments]) == 2
    return made[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "a.jsonl", "--length", "7"], {"data": "a.jsonl", "length": 7}),
        (["--lengths", "decoder.0=2", "--lengths", "decoder.1=3"], {"lengths": {"decoder.0": 2, "decoder.1": 3}}),
        (["--slots", "decoder.0-1", "--slots", "cross"], {"slots": ("decoder.0-1", "cross")}),
        (["--no-packing"], {"packing": False}),
        (["--packing"], {"packing": True}),
        (["--activation-checkpointing"], {"activation_checkpointing": True}),
        (["--trackers", "tensorboard, wandb"], {"trackers": ("tensorboard", "wandb")}),
        (["--option", "hidden=256", "--option", "gate-lr=0.1"], {"options": {"hidden": 256, "gate_lr": 0.1}}),
        (["--task-option", "words={good: [g], bad: b}"], {"task_options": {"words": {"good": ["g"], "bad": "b"}}}),
        (["--template", r"{input}\n\tA:"], {"template": "{input}\n\tA:"}),
        (["--lr", "6e-2"], {"lr": 0.06}),
        (["--samples", "3"], {"samples": 3}),
        (["--objective", "cross-entropy"], {"objective": "cross-entropy"}),
        (["--scheduler", "cosine"], {"scheduler": "cosine"}),
        (["--validation-rows", "5"], {"validation_rows": 5}),
        (["--set", "patience=3", "--set", "frozen-tokens=2"], {"patience": 3, "frozen_tokens": 2}),
        (["--set", "steps=3", "--steps", "4"], {"steps": 4}),  # the flag itself wins
        (["--set", "validation_rows=null"], {"validation_rows": None}),
        (["--set", "trackers=[]"], {"trackers": ()}),
    ],
)  # fmt: skip
def test_flags_set_the_config(monkeypatch, arguments, expected) -> None:
    found = config_of(monkeypatch, *arguments)
    assert found == dataclasses.replace(TrainConfig(), **expected)


def test_flags_win_over_the_file(monkeypatch, tmp_path) -> None:
    (tmp_path / "run.yaml").write_text("length: 5\nsteps: 9\nlengths: {decoder.0: 2}\n")
    found = config_of(monkeypatch, str(tmp_path / "run.yaml"), "--steps", "4", "--no-packing")
    assert found == TrainConfig(length=5, steps=4, lengths={"decoder.0": 2}, packing=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--length", "0"], "length: must be 1 or more, not 0"),
        (["--scheduler", "sawtooth"], "scheduler: must be one of linear, cosine, constant"),
        (["--lengths", "decoder.0"], "--lengths: 'decoder.0' must be NAME=VALUE"),
        (["--set", "lenght=3"], "did you mean 'length'"),
    ],
)
def test_wrong_flags_name_the_setting(arguments, message, capsys) -> None:
    assert execute(["train", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def bounds() -> list[tuple[type[Any], str, float, str]]:
    """(class, setting, a value just out of its range, what the error says) for every bound of every description."""
    found: list[tuple[type[Any], str, float, str]] = []
    for kind in KINDS:
        for name, about in describe(kind).items():
            if about.least is not None:
                found.append((kind, name, about.least - 1, f"must be {about.least:g} or more"))
            if about.most is not None:
                least = "" if about.least is None else f"{about.least:g} to "
                found.append(
                    (
                        kind,
                        name,
                        int(about.most) + 1,
                        f"must be {least}{int(about.most):,}{'' if least else ' or less'}",
                    )
                )
            if about.above is not None:
                found.append((kind, name, about.above, f"must be above {about.above:g}"))
            if about.below is not None:
                found.append((kind, name, about.below, f"must be below {about.below:g}"))
    return found


@pytest.mark.parametrize(("kind", "name", "value", "message"), bounds())
def test_every_range_is_checked_as_described(kind, name, value, message) -> None:
    number = type(value)(value)
    with pytest.raises(ConfigError, match=rf"^{name}: {message}, not"):
        build(kind, {name: number} | COMPANIONS.get(name, {}))


def test_known_bounds_are_among_those_described() -> None:
    found = {
        (kind, name): (about.least, about.above, about.below)
        for kind in KINDS
        for name, about in describe(kind).items()
    }
    assert describe(TrainConfig)["length"].most == 65_536
    assert found[TrainConfig, "length"] == (1, None, None)
    assert found[TrainConfig, "lr"] == (None, 0, None)
    assert found[TrainConfig, "dropout"] == (0, None, 1)
    assert found[CompressConfig, "recover"] == (0, None, None)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.02", 0.02), (0, 0.0), (0.5, 0.5)])
def test_a_share_may_be_in_percent(text, share) -> None:
    found = build(CompressConfig, {"keep_loss": text}).keep_loss
    assert found == pytest.approx(share)
    assert type(found) is float


def test_percent_is_for_shares_alone() -> None:
    with pytest.raises(ConfigError, match=r"keep_loss: must be a share such as 1% or 0\.01"):
        build(CompressConfig, {"keep_loss": "a bit"})
    with pytest.raises(ConfigError, match="lr: must be a number"):
        build(CompressConfig, {"lr": "1%"})


def test_a_class_of_ones_own_is_checked_by_its_descriptions() -> None:
    @dataclasses.dataclass(frozen=True)
    class Own:
        size: int = setting(3, help="How many.", group="own", least=2, below=5)
        names: dict[str, int] = setting(factory=dict, help="Which.", group="own")

        def __post_init__(self) -> None:
            check(self)

    Own.__annotations__.update(size=int, names=dict[str, int])
    assert Own().names is not Own().names
    assert defaults(Own) == {"size": 3, "names": {}}
    for value, message in ((1, "must be 2 or more, not 1"), (5, "must be below 5, not 5"), (True, "a whole number")):
        with pytest.raises(ConfigError, match=f"size: .*{message}"):
            Own(size=value)
