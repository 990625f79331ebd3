"""Chat templates that no model needs: without end, without bound, out of the sandbox, and wrong."""

from __future__ import annotations

_NESTED = "{% for a in range(9999) %}{% for b in range(9999) %}BODY{% endfor %}{% endfor %}"
_ENDLESS = _NESTED.replace("BODY", _NESTED.replace("BODY", ""))
_DOUBLED = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
)

WITHOUT_END = {
    "loops": _ENDLESS,
    "loops with output": _NESTED.replace("BODY", "x"),
    "loops with a filter": _NESTED.replace("BODY", "{{ a | string | upper }}"),
    "loops with a test": _NESTED.replace("BODY", "{% if a is divisibleby 7 %}{% endif %}"),
    "loops with a call": "{% macro m(x) %}{{ x }}{% endmacro %}" + _NESTED.replace("BODY", "{{ m(b) }}"),
    "loops over messages": "{% for a in range(9999) %}{% for b in range(9999) %}{% for m in messages %}{{ m.role }}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "loops with state": "{% set ns = namespace(n=0) %}"
    + _NESTED.replace("BODY", "{% set ns.n = ns.n + 1 %}"),
    "a sum of loops": "{{ range(9999) | map('string') | join | length }}" + _ENDLESS,
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a power of powers": "{{ 7 ** (7 ** (7 ** 7)) }}",
    "powers in a loop": _NESTED.replace("BODY", "{{ (a ** b) % 3 }}"),
    "a long number as text": "{{ ('9' * 9000000) | int }}" + _ENDLESS,
    "a sort again and again": _NESTED.replace("BODY", "{% set y = range(9999) | sort %}"),
    "a slice again and again": _NESTED.replace("BODY", "{% set y = messages * 99 %}"),
    "json again and again": _NESTED.replace("BODY", "{% set y = range(999) | list | tojson %}"),
    "words again and again": _NESTED.replace("BODY", "{% set y = ('a ' * 999) | wordcount %}"),
    "wraps again and again": _NESTED.replace("BODY", "{% set y = ('a ' * 9999) | wordwrap(3) %}"),
    "dates again and again": _NESTED.replace("BODY", "{% set y = strftime_now('%Y') %}"),
    "a cycle": "{% set c = cycler(1, 2) %}" + _NESTED.replace("BODY", "{{ c.next() }}"),
    "replacements": "{% set y = ('a' * 99999) %}"
    + _NESTED.replace("BODY", "{% set z = y | replace('a', 'bb') %}"),
}
WITHOUT_BOUND = {
    "a doubled text": _DOUBLED.replace("START", "'x'"),
    "a doubled list": _DOUBLED.replace("START", "[1]"),
    "a doubled tuple": _DOUBLED.replace("START", "(1, 2)"),
    "a long text": "{{ 'x' * 9999999999 }}",
    "a long list": "{{ [0] * 9999999999 }}",
    "a wide field": "{{ '%9999999999d' | format(1) }}",
    "a wide field by a method": "{{ '{:>9999999999}'.format('x') }}",
    "a centre": "{{ 'x' | center(9999999999) }}",
    "a centre by a method": "{{ 'x'.center(9999999999) }}",
    "filled with zeros": "{{ 'x'.zfill(9999999999) }}",
    "left of a wide field": "{{ 'x'.ljust(9999999999) }}",
    "an indent": "{{ ('a\\n' * 99999) | indent(99999) }}",
    "replaced by more": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "joined by more": "{{ (['a'] * 99999) | join('b' * 99999) }}",
    "words without end": "{{ lipsum(n=9999999) }}",
    "a shift": "{{ (1 * 2 ** 99999999999) }}",
}
OUT_OF_THE_SANDBOX = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ messages.append.__globals__ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__globals__ }}",
    "an import": "{{ self.__init__.__globals__.__builtins__.__import__('os').system('true') }}",
    "an attribute by a filter": "{{ '' | attr('__class__') | attr('__mro__') }}",
    "a format that reads": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a file": "{% include '/etc/passwd' %}",
    "another template": "{% extends 'base.html' %}",
    "an import of a template": "{% import 'x' as y %}{{ y.z }}",
}
WRONG = {
    "itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "two of each other": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "a division": "{{ 1 / 0 }}",
    "a key": "{{ messages['x']['y']['z'] }}",
    "an index": "{{ messages[99].role }}",
    "a call of none": "{{ none() }}",
    "an end": "{% for m in messages %}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "an own error": "{{ raise_exception('no') }}",
}
"""None of them needs a limit to end."""
