"""Finished samples on disk, one JSON line each: an evaluation that was killed goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from moorage.runtime.evals.tasks import Outcome, Place
from moorage.workers.errors import InvalidRequest

PREDICTIONS = "predictions.jsonl"
RUN = "run.json"


@dataclass(frozen=True, slots=True)
class Key:
    """What makes a sample the same sample in another run of the same DIR."""

    task: str
    preset: str
    place: Place


@dataclass(frozen=True, slots=True)
class Record:
    """A finished sample."""

    key: Key
    outcome: Outcome


class Journal:
    """Records of one run. Without a directory they are kept in memory alone."""

    def __init__(
        self, directory: Path | None, identity: Mapping[str, Any], choices: Mapping[str, Any]
    ) -> None:
        """`identity` must equal that of the directory's run; `choices` may grow by new names.

        Raises InvalidRequest for a directory that holds another run, or that can't be read.
        """
        self.found: dict[Key, Outcome] = {}
        self._file: TextIO | None = None
        self._common = {name: identity[name] for name in ("model", "seed")}
        if directory is None:
            return
        self._claim(directory, identity, choices)
        path = directory / PREDICTIONS
        _drop_unfinished_line(path)
        self.found = _read(path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, record: Record) -> None:
        """Keeps a record; it is with the operating system when this returns."""
        self.found[record.key] = record.outcome
        if self._file is None:
            return
        key = {"task": record.key.task, "preset": record.key.preset, **asdict(record.key.place)}
        line = json.dumps(key | self._common | asdict(record.outcome), ensure_ascii=False, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Ends writing."""
        if self._file is not None:
            self._file.close()

    def _claim(self, directory: Path, identity: Mapping[str, Any], choices: Mapping[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / RUN
        before: dict[str, Any] = {"choices": {}}
        if path.is_file():
            before = _read_run(path)
            for name, value in _flat(identity).items():
                old = _flat(before).get(name)
                if old != value:
                    raise InvalidRequest(
                        f"--output {directory}: holds a run with {name} {_brief(old)}, this one has {_brief(value)}; "
                        "name another directory"
                    )
            for label, settings in choices.items():
                if label in before["choices"] and before["choices"][label] != settings:
                    raise InvalidRequest(
                        f"--output {directory}: holds a run in which {label} was configured otherwise "
                        f"({_difference(before['choices'][label], settings)}); name another directory"
                    )
        elif any(directory.iterdir()):
            raise InvalidRequest(
                f"--output {directory}: holds other files and no {RUN}; name another directory"
            )
        run = {**identity, "choices": {**before["choices"], **choices}}
        scratch = path.with_suffix(".part")
        scratch.write_text(json.dumps(run, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        scratch.replace(path)


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(run, dict) and isinstance(run.get("choices"), dict):
            return run
    except ValueError:
        pass
    raise InvalidRequest(f"{path}: is not what an evaluation wrote; name another directory")


def _read(path: Path) -> dict[Key, Outcome]:
    found: dict[Key, Outcome] = {}
    if not path.is_file():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            place = Place(fields["index"], fields["length"], fields["depth"])
            values = {name: fields[name] for name in Outcome.__dataclass_fields__}
            outcome = Outcome(**values | {"answers": tuple(values["answers"])})
            found[Key(fields["task"], fields["preset"], place)] = outcome
        except (ValueError, KeyError, TypeError):
            raise InvalidRequest(
                f"{path}:{number}: is not a finished sample; remove the line and it is run again"
            ) from None
    return found


def _drop_unfinished_line(path: Path) -> None:
    """A process that was killed while it wrote leaves a line without an end."""
    if not path.is_file():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return flat


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = _flat(before), _flat(now)
    name = next(name for name in [*new, *old] if old.get(name) != new.get(name))
    return f"{name} was {_brief(old.get(name))}, now {_brief(new.get(name))}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
