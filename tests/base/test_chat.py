"""Chat templates: the same text as Transformers makes, within bounds of time and memory."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_bombs import BOMBS, BROKEN
from foreword.base.chat import FUEL, render, render_chat
from foreword.base.chat.meter import METER, Meter, OutOfBounds
from foreword.base.rendering import Renderer
from foreword.errors import ConfigError
from tiny import byte_tokenizer

# What templates of real models do, in the words of this test
TEMPLATES = {
    "ChatML with a default system message": """
{%- for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You help.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    "turns that must alternate": """
{{- bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Turns must alternate') }}{% endif %}
{%- if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<turn>' + role + '\n' + message['content'] | trim + '</turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}""",
    "macros, namespaces and thinking": """
{%- macro tag(name, attrs=[]) %}<{{ name }}{% for attr in attrs %} {{ attr[0] }}="{{
attr[1]|string|replace('"', '&quot;') }}"
{%- endfor %}>{% endmacro %}
{%- set ns = namespace(last=-1, seen='') %}
{%- for message in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}
{%- if message.role == 'user' and ns.last < 0 %}{% set ns.last = index %}{% endif %}{% endfor %}
{%- for message in messages %}
{{- tag('message', [('role', message.role), ('index', loop.index)]) }}
{%- if '</think>' in message.content %}
{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
{%- else %}{% set content = message.content %}{% endif %}
{%- set ns.seen = ns.seen ~ message.role ~ loop.index ~ (';' if not loop.last else '.') %}
{{- content }}{% if loop.index0 > ns.last %}{% generation %}{{ '!' }}{% endgeneration %}{% endif %}</message>
{%- endfor %}{{ ns.seen }}{% if tools is defined and tools %}never{% endif %}""",
    "filters": """
{%- set roles = messages | map(attribute='role') | list %}{{ roles | join(', ') | upper }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first }}
{{ messages[0] | tojson }} {{ {'a': [1, 2.5, none], 'b': true} | tojson(indent=2) }}
{{ messages[0].content | length }} {{ (messages | last)['content'][:3] | capitalize }}
{{ messages[0] | dictsort | list }} {{ [3, 1, 2] | sort(reverse=true) | list }} {{ [1, 1, 2] | unique | list }}
{{ '%s-%d' | format('x', 3) }} {{ '{} {a}'.format(1, a='b') }} {{ '%05.1f' % 2.25 }}
{{ 'a,b'.split(',') | reverse | list }}
{{ roles | reject('in', ['system']) | list | length }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 10 }}
{{ -3 | abs }} {{ 2.567 | round(1) }}
{{ 'x y z' | title | replace(' ', '') | center(9) }} {{ [1, 2, 3] | sum }} {{ missing | default('none there') }}
{{ dict(a=1).items() | list }} {{ 'a\nb' | indent(2) }} {{ '<a>' | escape }} {{ ('<' | safe) + 'b' }}
{{ range(3) | list }}""",
    "loop controls and slices": """
{%- for message in messages %}{% if loop.index > 3 %}{% break %}{% endif %}
{%- if message.role == 'system' %}{% continue %}{%- endif %}
{{- loop.index }}/{{ loop.length }}{{ loop.cycle(':', ';') }}{{ message.content[-4:] }}
{%- else %}nothing{% endfor %}
{%- filter upper %}{{ messages[0].role }} said{% endfilter %}
{%- set block %}{{ messages | length }} turns{% endset %}{{ block }}
{%- with x = 'y' * 3 %}{{ x }}{% endwith %}{{ 'one' if messages | length == 1 else 'many' }}
{{- messages[0].get('none', '-') }}""",
}  # fmt: skip
CONTENTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["", "a</think>\n\nb", "<think>x</think>y", "{{ 1 }}", '"', "x" * 5000, "\u2028ß\n"]
)


def tokenizer_with(template: Any) -> Any:
    """A byte tokenizer of its own, since the usual one is shared by all tests."""
    tokenizer = cast(Any, byte_tokenizer).__wrapped__()
    tokenizer.chat_template = template
    return tokenizer


def transformers_text(template: str, messages: list[dict[str, str]], generation: bool) -> str:
    tokenizer = byte_tokenizer()
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=generation
    )
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("name", TEMPLATES)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=4), generation=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_text_is_that_of_transformers(name, contents, generation) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    roles = ("user", "assistant") * 2
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    found = render_chat(tokenizer, messages, generation)
    assert found == transformers_text(TEMPLATES[name], messages, generation)


@pytest.mark.smollm2
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(max_examples=25, deadline=None)
def test_smollm2s_own_template(smollm2, text) -> None:
    messages = [{"role": "user", "content": text}]
    expected = smollm2.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render_chat(smollm2.tokenizer, messages, add_generation_prompt=True) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_honest_template_uses_little_of_its_fuel(name) -> None:
    used: list[int] = []

    class Watched(Meter):
        def pay(self, cost: int) -> None:
            used.append(cost)
            super().pay(cost)

    messages = [{"role": "user", "content": "hello " * 20}]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("foreword.base.chat.Meter", Watched)
        render(TEMPLATES[name], messages, {"bos_token": "<s>", "add_generation_prompt": True})
    assert 0 < sum(used) < FUEL / 100


REFUSED = BOMBS | BROKEN


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_are_refused(name) -> None:
    tokenizer = tokenizer_with(REFUSED[name])
    with pytest.raises(ConfigError, match="template: the tokenizer's chat template"):
        render_chat(tokenizer, [{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "hidden", ["''|attr('__class__')", "raise_exception.__globals__", "messages.__len__", "namespace.mro", "range._x"]
)
def test_what_is_private_is_undefined(hidden) -> None:
    assert render("{{ (" + hidden + ") is defined }}", [], {})[0] == "False"


def test_a_bomb_may_wait_for_its_message() -> None:
    tokenizer = tokenizer_with(
        "{{ messages[0].content * (10**9 if 'boom' in messages[0].content else 1) }}{{ eos_token }}"
    )
    renderer = Renderer(tokenizer)
    assert renderer.prompt({"input": "quiet"}) == "quiet</s>"
    with pytest.raises(ConfigError, match="takes too much time or memory"):
        renderer.prompt({"input": "boom"})


@pytest.mark.parametrize("template", [5, {"default": 5}, {"other": "x"}, ["x"]])
def test_templates_that_are_no_text(template) -> None:
    tokenizer = tokenizer_with(template)
    with pytest.raises(ConfigError, match="template: the tokenizer's chat template can't be used"):
        Renderer(tokenizer)


def test_long_messages_get_more_fuel() -> None:
    messages = [{"role": "user", "content": "long text " * 1_000_000}]
    assert len(render(TEMPLATES["turns that must alternate"], messages, {"bos_token": ""})[0]) > 9_000_000


def test_a_meter_is_needed() -> None:
    token = METER.set(Meter(10))
    with pytest.raises(OutOfBounds):
        METER.get().pay(11)
    METER.reset(token)


# Small programs of everything that is metered: Transformers' text, or an error; never another text
VALUES = st.sampled_from([
    "'ab'", "'a b c'", "3", "0", "-2", "2.5", "none", "true", "[1, 'a']", "(1, 2)", "{'a': 'b'}", "messages",
    "messages[0].content", "range(4)", "missing", "ns.x", "loop.index", "loop.last",
])  # fmt: skip
_UNARY = [
    "|trim", "|upper", "|list", "|join('-')", "|length", "|string", "|tojson", "|first", "|last", "|sort",
    "|unique|list", "|int", "|float", "|title", "|sum", "|max", "|reverse|list", "|default('d')", "|escape", "|safe",
    "|items|list", "[1:]", "[::-1]", "[0]", ".split()", ".strip()", ".upper()", ".get('a')", "|abs", ".items()|list",
    ".keys()|list", "|map('string')|list", "|replace('a', 'bb')", "|indent(1)", "|dictsort", ".replace('a', 'z')",
    ".join(['x', 'y'])", ".center(5)", ".splitlines()", "|groupby(0)|list", ".startswith('a')", ".format(1)",
    "|format(1)", ".rsplit('b', 1)", ".count('a')", "|select|list", " is string", " is mapping", " is defined",
]  # fmt: skip
_BINARY = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or"]
EXPRESSIONS = st.recursive(
    VALUES,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(_UNARY)).map(lambda parts: f"({parts[0]}){parts[1]}"),
        st.tuples(inner, st.sampled_from(_BINARY), inner).map(lambda parts: f"({parts[0]}) {parts[1]} ({parts[2]})"),
        st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]}) if ({parts[1]}) else ({parts[2]})"),
    ),
    max_leaves=5,
)
STATEMENTS = st.recursive(
    EXPRESSIONS.map(lambda text: f"{{{{ {text} }}}}")
    | EXPRESSIONS.map(lambda text: f"{{% set ns.x = {text} %}}")
    | st.sampled_from([" text ", "{% set x %}a{{ ns.x }}{% endset %}{{ x }}"]),
    lambda inner: st.one_of(
        st.tuples(EXPRESSIONS, inner, inner).map(lambda p: f"{{% if {p[0]} %}}{p[1]}{{% else %}}{p[2]}{{% endif %}}"),
        st.tuples(EXPRESSIONS, inner).map(lambda p: f"{{% for y in {p[0]} %}}{p[1]}{{{{ y }}}}{{% endfor %}}"),
        st.tuples(inner, inner).map(
            lambda p: f"{{% macro m(a=1) %}}{p[0]}{{{{ a }}}}{{% endmacro %}}{{{{ m() }}}}{p[1]}"
        ),
    ),
    max_leaves=6,
)


def check_program(statements: list[str]) -> None:
    template = "{% set ns = namespace(x='s') %}" + "".join(statements)
    tokenizer = tokenizer_with(template)
    messages = [{"role": "user", "content": "ab\ncd"}]
    try:
        found = render_chat(tokenizer, messages)
    except ConfigError:
        return
    assert found == transformers_text(template, messages, False)


@given(st.lists(STATEMENTS, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_program_gives_transformers_text_or_an_error(statements) -> None:
    check_program(statements)


@pytest.mark.slow
@given(st.lists(STATEMENTS, min_size=1, max_size=8))
@settings(max_examples=10_000, deadline=None)
def test_many_programs_give_transformers_text_or_an_error(statements) -> None:
    check_program(statements)
