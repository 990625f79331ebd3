"""Write `python_reference.txt`: the language reference and library notes that every Python carries.

    python deploy/documents/build.py

The text depends on the Python that runs this; the shipped file names its own in the first lines.
"""

from __future__ import annotations

import ast
import inspect
import platform
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

OUTPUT = Path(__file__).with_name("python_reference.txt")
NOT_A_LIBRARY = frozenset({"antigravity", "idlelib", "lib2to3", "test", "this", "turtledemo"})
MIN_MODULE_CHARACTERS = 200


def main() -> None:
    """Build the document and say how long it is."""
    language = [language_topic(topics[name]) for name in sorted(topics)]
    library = [chapter for name in sorted(sys.stdlib_module_names) if (chapter := module_chapter(name))]
    parts = [
        heading("Python reference", "="),
        f"From the documentation strings of CPython {platform.python_version()}.",
        heading("Part one: the language", "="),
        *unique(language),
        heading("Part two: the library", "="),
        *library,
    ]
    text = "\n\n".join(parts) + "\n"
    OUTPUT.write_text(text, encoding="utf-8")
    print(f"{OUTPUT.name}: {len(text)} characters, {len(language)} topics, {len(library)} modules")


def heading(title: str, rule: str) -> str:
    """A title with a line of `rule` under it."""
    return f"{title}\n{rule * len(title)}"


def unique(chapters: list[str]) -> Iterator[str]:
    """The chapters that no other chapter holds in full: several topics are sections of longer ones."""
    for number, chapter in enumerate(chapters):
        others = chapters[:number] + [other for other in chapters[number + 1 :] if other != chapter]
        if not any(chapter in other for other in others):
            yield chapter


def language_topic(text: str) -> str:
    """One topic of the language reference, with single blank lines and no trailing space."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return "\n".join(line for number, line in enumerate(lines) if line or lines[number - 1])


def module_chapter(name: str) -> str | None:
    """What one public module, its functions and its classes say of themselves; read, never imported."""
    source = module_source(name)
    if source is None or name.startswith("_") or name in NOT_A_LIBRARY:
        return None
    tree = ast.parse(source.read_text(encoding="utf-8"))
    about = ast.get_docstring(tree)
    if about is None or len(about) < MIN_MODULE_CHARACTERS:
        return None
    entries = [entry for node in tree.body if (entry := definition(node))]
    return "\n\n".join([heading(f"The module {name}", "*"), tidy(about), *entries])


def module_source(name: str) -> Path | None:
    """Where the standard library keeps a module's text, if it is written in Python."""
    library = Path(sysconfig.get_path("stdlib"))
    candidates = (library / f"{name}.py", library / name / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def definition(node: ast.stmt) -> str | None:
    """A public function or class: its first line, and what it says of itself, indented."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return None
    about = ast.get_docstring(node)
    if about is None:
        return None
    if isinstance(node, ast.ClassDef):
        title = f"class {node.name}"
    else:
        title = f"{node.name}({ast.unparse(node.args)})"
    body = "\n".join(f"   {line}" if line else "" for line in tidy(about).splitlines())
    return f"{title}\n\n{body}"


def tidy(docstring: str) -> str:
    """A documentation string without its indentation or trailing space."""
    return "\n".join(line.rstrip() for line in inspect.cleandoc(docstring).expandtabs().splitlines())


if __name__ == "__main__":
    main()
