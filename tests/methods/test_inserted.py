"""Prompts that are not keys and values: inserted among the embeddings of every row, mask and positions right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import foreword
from foreword.attach.virtual import tables_of
from foreword.base.compose import token_prefix
from foreword.base.inputs import vocabulary
from foreword.base.rendering import Renderer
from foreword.errors import AttachError, ConfigError, PrefixMismatchError
from foreword.methods import Start, get_method
from foreword.prefix import EMBEDDINGS
from parity_helpers import CONTROL, TOLERANCE
from tiny import DECODERS, relative, tiny_base

# (kind, changes): windows, hybrids, encoders, encoder–decoders
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, window": ("mistral", {"sliding_window": 8}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "gpt_oss": ("gpt_oss", {}),
    "llama4": ("llama4_text", {}),
    "jamba": ("jamba", {}),
    "falcon_h1": ("falcon_h1", {}),
    "lfm2": ("lfm2", {}),
    "qwen3_next": ("qwen3_next", {}),
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "albert": ("albert", {}),
    "modernbert": ("modernbert", {}),
    "distilbert": ("distilbert", {}),
    "t5": ("t5", {}),
    "bart": ("bart", {}),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [40, 41, 42]]


def producer_of(base, name="prompt", length=4):
    torch.manual_seed(0)
    ids = torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(5))
    embeddings = 1.5 * tables_of(base.model)[-1](ids).detach()  # of no token, so that ids alone can't give them
    method = get_method(name)
    options = {"hidden": 24} if name == "ptuning" else {}
    start = Start(token_prefix(ids.tolist(), base, "text"), embeddings, base)
    return method.start(start, method.parse_options(options))


def logits_of(base, tensors):
    more = (
        {"decoder_input_ids": torch.full((len(tensors["input_ids"]), 1), 3)}
        if base.model.config.is_encoder_decoder
        else {}
    )
    return base.model(**tensors, **more).logits


def by_hand(base, prompt: list[int], embeddings: torch.Tensor) -> torch.Tensor:
    """Logits of one row with the embeddings in front, through the model's own `inputs_embeds`."""
    tokens = tables_of(base.model)[-1](torch.tensor([prompt]))
    whole = torch.cat([embeddings[None], tokens], dim=1)
    more = {"decoder_input_ids": torch.tensor([[3]])} if base.model.config.is_encoder_decoder else {}
    return base.model(inputs_embeds=whole, **more).logits[0]


@pytest.mark.parametrize("name", ["prompt", "ptuning"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_models_own_inputs_embeds(case, name) -> None:
    """A padded batch, logits and the gradient of every parameter; a prompt of other embeddings fails."""
    kind, changes = CASES[case]
    base = tiny_base(kind, **changes)
    producer = producer_of(base, name)
    prefix = producer()
    assert prefix.merge == "embedding"
    assert prefix.length == 4
    made = base.inputs(PROMPTS, prefix)
    with base.attach(made.rows):
        found = logits_of(base, made.tensors)
    parameters = list(producer.parameters())
    losses = torch.zeros(2).unbind()
    for row, prompt in enumerate(PROMPTS):
        expected = by_hand(base, prompt, prefix.extras[EMBEDDINGS])
        own = found[row]
        if not base.model.config.is_encoder_decoder:
            own = own[made.tensors["attention_mask"][row].bool()]
        assert relative(own, expected) < TOLERANCE
        losses = (losses[0] + own.logsumexp(-1).sum(), losses[1] + expected.logsumexp(-1).sum())
        assert relative(by_hand(base, prompt, prefix.extras[EMBEDDINGS].flip(0)), expected) > CONTROL
    pairs = [torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True) for loss in losses]
    for ours, theirs in zip(*pairs, strict=True):
        if theirs is not None and float(theirs.norm()) > 0:
            assert relative(ours, theirs) < 10 * TOLERANCE


@pytest.mark.parametrize("case", ["mistral, window", "gemma3", "jamba", "bert", "t5", "bart"])
def test_mixed_with_plain_rows_and_other_lengths(case) -> None:
    kind, changes = CASES[case]
    base = tiny_base(kind, **changes)
    short, long = producer_of(base).finish(), producer_of(base, length=7).finish()
    rows, prompts = [short, None, long], [PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    made = base.inputs(prompts, rows)
    with base.attach(made.rows):
        together = logits_of(base, made.tensors)
    for row, (prefix, prompt) in enumerate(zip(rows, prompts, strict=True)):
        single = base.inputs([prompt], prefix)
        with base.attach(single.rows):
            alone = logits_of(base, single.tensors)[0]
        own = (
            together[row]
            if base.model.config.is_encoder_decoder
            else together[row][made.tensors["attention_mask"][row].bool()]
        )
        assert relative(own, alone) < TOLERANCE


@pytest.mark.parametrize("case", ["mistral, window", "gemma3", "jamba", "falcon_h1", "t5", "bart"])
def test_generation_beside_plain_rows(case) -> None:
    kind, changes = CASES[case]
    base = tiny_base(kind, **changes)
    prefix, prompts = producer_of(base).finish(), ["abc", "a longer one", "xy"]
    rows = [prefix, None, prefix]
    ways: tuple[dict[str, Any], ...] = ({}, {"num_beams": 2})
    for options in ways:
        together = base.generate(prompts, rows, max_new_tokens=5, template="{input}", **options)
        alone = [
            base.generate([prompt], row, max_new_tokens=5, template="{input}", **options)[0]
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        assert together == alone
    embeddings = prefix.extras[EMBEDDINGS]
    if kind in DECODERS and kind != "falcon_h1":  # which generates from no embeddings
        tokens = tables_of(base.model)[-1](torch.tensor([base.tokenizer("abc")["input_ids"]]))
        expected = base.model.generate(
            inputs_embeds=torch.cat([embeddings[None], tokens], 1), max_new_tokens=5, do_sample=False, pad_token_id=258
        )
        assert (
            base.tokenizer.decode(expected[0], skip_special_tokens=True).strip()
            == base.generate(["abc"], prefix, max_new_tokens=5, template="{input}")[0]
        )


def test_stands_behind_an_encoders_cls() -> None:
    base = tiny_base("bert")
    base.tokenizer = type("WithCls", (), {"cls_token_id": 256, "pad_token_id": 258})()
    prefix, first = producer_of(base).finish(), vocabulary(base)
    made = base.inputs([[256, 5, 6], [5, 6]], prefix)
    virtual = list(range(first, first + 4))
    assert made.tensors["input_ids"].tolist() == [[256, *virtual, 5, 6], [*virtual, 5, 6, 258]]
    assert made.tensors["attention_mask"].tolist() == [[1] * 7, [1] * 6 + [0]]


def test_a_template_says_where_virtual_tokens_stand() -> None:
    base = tiny_base("bert")
    renderer = Renderer(base.tokenizer, "{input}[V]*3 is[V]")
    prompt = renderer.prompt({"input": "ab"})
    prefix, first = producer_of(base).finish(), vocabulary(base)
    ids = base.inputs([renderer.prompt_ids(prompt)], prefix).tensors["input_ids"][0].tolist()
    letters = base.tokenizer("ab")["input_ids"], base.tokenizer(" is")["input_ids"]
    assert ids == [*letters[0], first, first + 1, first + 2, *letters[1], first + 3]
    for other in (producer_of(base, length=3).finish(), None):
        with pytest.raises(PrefixMismatchError, match=r"4 places for virtual tokens .* but \d are"):
            base.inputs([renderer.prompt_ids(prompt)], other)


def test_a_text_can_not_make_a_place() -> None:
    """What stands in a row's field is text, whatever it says."""
    renderer = Renderer(tiny_base("bert").tokenizer, "{input}>")
    assert renderer.prompt_ids(renderer.prompt({"input": "[V]*2"})) == renderer.tokenizer("[V]*2>")["input_ids"]


def test_a_private_character_is_a_character(tmp_path) -> None:
    base = tiny_base()
    for template in ("{input}=", "{input} [V]*2="):
        renderer = Renderer(base.tokenizer, template)
        ids = renderer.prompt_ids(renderer.prompt({"input": "a\ue000b"}))
        assert sum(token >= 2**40 for token in ids) == renderer.places
    assert len(base.generate(["a\ue000b"], None, max_new_tokens=2, template="{input}=")) == 1


def test_a_plain_text_has_no_place_that_a_prefix_was_trained_with() -> None:
    base = tiny_base("bert")
    prefix = producer_of(base).finish().with_record("prompt", {"template": "{text} [V]*4 end"})
    with pytest.raises(PrefixMismatchError, match="trained with places for its tokens"):
        base.inputs(["abc"], prefix)


def test_calls_without_virtual_tokens_are_refused() -> None:
    base = tiny_base("bert")
    prefix = producer_of(base).finish()
    with base.attach(prefix), pytest.raises(AttachError, match=r"row 0 .* no virtual tokens; .*base\.inputs"):
        base.model(torch.tensor([[5, 6, 7]]))
    made = base.inputs([[5, 6, 7]], prefix)
    with base.attach(None), pytest.raises((AttachError, IndexError)):
        base.model(**made.tensors)
    with base.attach([None, prefix]), pytest.raises(AttachError, match="row 0 has virtual tokens, but no prefix"):
        base.model(torch.cat([made.tensors["input_ids"]] * 2))
    one_more = torch.cat([made.tensors["input_ids"], made.tensors["input_ids"].amax() + torch.ones(1, 1).long()], 1)
    with base.attach(prefix), pytest.raises(AttachError, match=r"row 0 has virtual token (\d+), but its prefix has \1"):
        base.model(one_more)


@pytest.mark.parametrize("kind", ["gemma4_text", "whisper", "vit", "clip_vision_model"])
def test_where_nothing_can_be_inserted(kind) -> None:
    base = tiny_base(kind)
    with pytest.raises(ConfigError, match="method: "):
        get_method("prompt").start(Start(None, torch.zeros(4, 64), base), None)  # type: ignore[arg-type]


def test_trained_on_a_windowed_model_and_gone_on_with(tmp_path) -> None:
    from training_helpers import settings, write_rows

    base, rows = tiny_base("mistral", sliding_window=8), write_rows(tmp_path)
    first = foreword.train(base, settings(rows, "first", method="prompt", steps=20, lr=0.02))
    assert first.prefix.merge == "embedding"
    assert first.validation_loss < first.history[0]["validation_loss"]
    config = settings(
        rows, "second", method="ptuning", steps=1, init="prefix", init_prefix=str(first.run / "prefix"), lr=1e-4
    )
    second = foreword.train(base, config)
    assert second.history[0]["validation_loss"] == pytest.approx(first.validation_loss, rel=1e-3)
    with pytest.raises(ConfigError, match="slots: prompt stands among the embeddings"):
        foreword.train(base, settings(rows, "third", method="prompt", slots=("decoder.0",)))
