"""Chat templates that make a lot out of a little, and templates that are broken; each is to be refused at once."""

from __future__ import annotations

_TWICE = "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}"
_CALLS = zip("abcdefgh", "bcdefghi", strict=True)
_BOTH = "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(30) %}" + _TWICE + "{% endfor %}"


def again(start: str, times: int, value: str, after: str = "") -> str:
    """A template that sets `n.x` over and over, then goes on with `after`."""
    loop = "{% for i in range(" + str(times) + ") %}{% set n.x = " + value + " %}{% endfor %}"
    return "{% set n = namespace(" + start + ") %}" + loop + after


BOMBS = {
    "multiplied text": "{{ 'a' * 10**9 }}",
    "multiplied list": "{{ [0] * 10**9 }}",
    "multiplied backwards": "{{ 10**9 * 'a' }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "number of many digits": again("x=2", 99, "n.x * n.x"),
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loop with a test": "{% for a in range(9999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "doubling by ~": again("x='ab'", 99, "n.x ~ n.x"),
    "doubling by +": again("x='ab'", 99, "n.x + n.x"),
    "doubling by %": again("x='a'", 99, "'%s%s' % (n.x, n.x)"),
    "doubling by format": again("x='a'", 99, "'{0}{0}'.format(n.x)"),
    "doubling by format_map": again("x='a'", 99, "'{a}{a}'.format_map({'a': n.x})"),
    "doubling by set": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set b %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = b %}{% endfor %}",
    "doubling by join": again("x='a'", 99, "[n.x, n.x] | join"),
    "doubling by str.join": again("x='a'", 99, "n.x.join([n.x, n.x])"),
    "doubling lists": again("x=[1]", 99, "n.x + n.x"),
    "nested lists written": again("x=[1]", 99, "[n.x, n.x]", "{{ n.x }}"),
    "nested lists as JSON": again("x=[1]", 30, "[n.x, n.x]", "{{ n.x | tojson }}"),
    "nested lists compared": _BOTH + "{{ n.x == n.y }}",
    "nested lists tested": _BOTH + "{{ n.x is eq(n.y) }}",
    "nested tuples as a key": again("x=(1,)", 60, "(n.x, n.x)", "{{ {n.x: 1} }}"),
    "nested tuples got": again("x=(1,)", 60, "(n.x, n.x)", "{{ {1: 1}.get(n.x) }}"),
    "nested tuples as an index": again("x=(1,)", 60, "(n.x, n.x)", "{{ {1: 1}[n.x] }}"),
    "nested tuples in dict": again("x=(1,)", 60, "(n.x, n.x)", "{{ dict([(n.x, 1)]) }}"),
    "macro that calls itself": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "macros in a row": "{% macro a() %}" + "x" * 99 + "{% endmacro %}"
    + "".join(f"{{% macro {n}() %}}{f'{{{{ {m}() }}}}' * 9}{{% endmacro %}}" for m, n in _CALLS)
    + "{{ i() }}",
    "call blocks": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 20 + "x" * 99 + "{% endcall %}" * 20,
    "recursive loop": "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "width": "{{ 'a'.center(10**9) }}{{ 'a'.ljust(10**9) }}",
    "zeros": "{{ '1'.zfill(10**9) }}",
    "width as a filter": "{{ 'a' | center(10**9) }}",
    "width in %": "{{ '%1000000000d' % 1 }}",
    "width in % by name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "width in % as an argument": "{{ '%*d' % (10**9, 1) }}",
    "width in the filter": "{{ '%1000000000d' | format(1) }}",
    "precision": "{{ '%.1000000000f' % 1 }}",
    "width in format": "{{ '{:1000000000}'.format(1) }}",
    "width in format as an argument": "{{ '{:{}}'.format(1, 10**9) }}",
    "replace": "{{ ('a' * 10000).replace('a', 'b' * 10000) }}",
    "replace of nothing": "{{ ('a' * 10000).replace('', 'b' * 10000) }}",
    "replace as a filter": "{{ ('a' * 10000) | replace('a', 'b' * 10000) }}",
    "join of one text": "{{ (['a' * 10000] * 10000) | join }}",
    "str.join of one text": "{{ ''.join(['a' * 10000] * 10000) }}",
    "join with a long text": "{{ range(10000) | join('a' * 10000) }}",
    "indent": "{{ ('a\n' * 10000) | indent(100000) }}",
    "indent of a text": "{{ ('a\n' * 10000) | indent('b' * 100000) }}",
    "JSON indent": "{{ [[[1]]] | tojson(indent=10**9) }}",
    "JSON separators": "{{ range(9999) | list | tojson(separators=('a' * 99999, ':')) }}",
    "split": "{% for i in range(99) %}{{ ('a ' * 100000).split() }}{% endfor %}",
    "sum of lists": "{{ ([[1] * 1000] * 10000) | sum(start=[]) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(10**9) }}",
    "translate": "{{ ('a' * 10000).translate({97: 'b' * 10000}) }}",
    "encode": "{{ ('a' * 1000).encode().center(10**9) }}",
    "wordwrap": "{{ ('a' * 100000) | wordwrap(1) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1.5 | round(10**9, 'ceil') }}",
    "date": "{{ strftime_now('%Y' * 99999) }}",
    "backward search": "{% set a = 'a' * 200000 %}{{ a.rfind('b' + a[:100000]) }}",
    "strip": "{% set a = 'a' * 200000 %}{{ a.strip('b' * 100000 + 'a') }}",
    "range searched": "{% for i in range(9999) %}{{ 'a' in range(99999) }}{% endfor %}",
    "text searched": "{% set a = 'a' * 500000 %}{% for i in range(9999) %}{{ 'b' in a }}{% endfor %}",
    "a great deal of text": "{% set a = 'a' * 500000 %}{% for i in range(9999) %}{{ a }}{% endfor %}",
    "arguments": "{% macro f() %}{% endmacro %}{% for i in range(9999) %}{{ f(*range(99999)) }}{% endfor %}",
    "sorting": "{% for i in range(9999) %}{{ range(99999) | sort | length }}{% endfor %}",
    "mapping": "{% for i in range(9999) %}{{ range(99999) | map('string') | join }}{% endfor %}",
    "dict": "{% for i in range(9999) %}{{ dict.fromkeys(range(99999)) | length }}{% endfor %}",
    "loop.length": "{% for i in range(9999) %}{% for j in range(99999) %}{{ loop.length }}"
    "{% break %}{% endfor %}{% endfor %}",
    "a long literal in a loop": "{% for i in range(99999) %}{% set x = [" + "1," * 5000 + "] %}{% endfor %}",
    "long data in a loop": "{% for i in range(99999) %}" + "x" * 50_000 + "{% endfor %}",
}  # fmt: skip
BROKEN = {
    "no end": "{% if %}",
    "unknown filter": "{{ 'a' | wonder }}",
    "undefined": "{{ nothing.there }}",
    "called undefined": "{{ nothing() }}",
    "raised": "{{ raise_exception('not today') }}",
    "division": "{{ 1 / 0 }}",
    "wrong types": "{{ 1 + 'a' }}",
    "include": "{% include 'x' %}",
    "import": "{% import 'x' as y %}",
    "block": "{% block a %}{% endblock %}",
    "private attribute": "{{ ''.__class__.__mro__ }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "private name in a namespace": "{% set n = namespace(__class__=1) %}",
    "changed list": "{{ messages.append(1) }}",
    "nested 200 ifs": "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "nested 30 loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "nested brackets": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "many nots": "{{ " + "not " * 5000 + "1 }}",
    "long chain": "{{ a" + ".a" * 20_000 + " }}",
    "many parts": "{{ a }}" * 20_000,
    "long": "x" * 100_001,
    "gigantic": "x" * 3_000_000,
    "many digits": "{{ " + "1" * 5000 + " }}",
    "open comment": "{#" * 20_000,
    "surrogate": "{{ '\ud800' }}",
}
