"""DeepSeek: calls between `<｜tool▁calls▁begin｜>` and `<｜tool▁calls▁end｜>`, each with marks of its own.

V3 and R1 write `function<｜tool▁sep｜>NAME`, then the arguments in a fence of Markdown. V3.1 writes
`NAME<｜tool▁sep｜>`, then the arguments. One parser reads both.
"""

from __future__ import annotations

import re

from moorage.runtime.text.tools.json_calls import Marks
from moorage.runtime.text.tools.named_calls import NamedCallFormat

_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _ONE_END, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_MARKS = Marks(
    begins=(_ALL, _ONE),
    ends=(_ALL_END, _ONE_END),
    name_first=True,
    nested=True,
    name=re.compile(rf"(?:function{_SEPARATOR})?(\S.*?)\s*(?:{_SEPARATOR}|\n|```|$)"),
    between=" \t\r\n`",
)
_TOKENS = (_ALL, _ALL_END, _ONE, _ONE_END, _SEPARATOR)

V3 = NamedCallFormat(
    "deepseek_v3",
    _MARKS,
    in_template=(f"['type'] + '{_SEPARATOR}'", f"function{_SEPARATOR}"),
    before=_ALL,
    before_each=_ONE,
    after_each=_ONE_END,
    separator="\n",
    after=_ALL_END,
    before_name=f"function{_SEPARATOR}",
    after_name="\n```json\n",
    after_arguments="\n```",
    tokens=_TOKENS,
)
V31 = NamedCallFormat(
    "deepseek_v31",
    _MARKS,
    in_template=(_SEPARATOR,),
    before=_ALL,
    before_each=_ONE,
    after_each=_ONE_END,
    separator="",
    after=_ALL_END,
    after_name=_SEPARATOR,
    tokens=_TOKENS,
)
