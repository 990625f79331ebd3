"""Finished samples on disk, one JSON line each: an evaluation that was killed goes on where it was."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
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
        self, directory: Path | None, identity: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """`identity` must equal that of the directory's run; each of the `parts` may grow by new names.

        Raises InvalidRequest for a directory that holds another run, that can't be read, or that another process
        writes to.
        """
        self.found: dict[Key, Outcome] = {}
        self._file: TextIO | None = None
        self._common = {name: identity[name] for name in ("model", "seed")}
        if directory is None:
            return
        _claim(directory, _as_read(identity), _as_read(parts))
        path = directory / PREDICTIONS
        self._file = _open_alone(path)
        try:
            _drop_unfinished_line(path)
            self.found = _read(path)
        except InvalidRequest:
            self.close()
            raise

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


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there as a whole or as it was before, whenever the process is killed."""
    scratch = _scratch(path)
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def _scratch(path: Path) -> Path:
    return path.with_suffix(".part")


def _claim(directory: Path, identity: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes the directory this run's, or finds that it is; its file names what every part was configured as."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / RUN
    before: dict[str, Any] = {}
    if path.is_file():
        before = _read_run(path)
        _check_same(directory, before, identity, parts)
    elif any(file != _scratch(path) for file in directory.iterdir()):
        raise InvalidRequest(f"--output {directory}: holds other files and no {RUN}; name another directory")
    run = {**identity, **{name: before.get(name, {}) | dict(part) for name, part in parts.items()}}
    write_whole(path, json.dumps(run, indent=1, allow_nan=False) + "\n")


def _check_same(
    directory: Path,
    before: Mapping[str, Any],
    identity: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Any]],
) -> None:
    for name, value in identity.items():
        if before.get(name) != value:
            raise InvalidRequest(
                f"--output {directory}: holds a run with {name} {_brief(before.get(name))}, this one has "
                f"{_brief(value)}; name another directory"
            )
    for part, named in parts.items():
        for name, settings in named.items():
            old = before.get(part, {}).get(name, settings)
            if old != settings:
                raise InvalidRequest(
                    f"--output {directory}: holds a run in which {name} was configured otherwise "
                    f"({_difference(old, settings)}); name another directory"
                )


def _open_alone(path: Path) -> TextIO:
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InvalidRequest(
            f"--output {path.parent}: another evaluation is writing there; wait for it or name another directory"
        ) from None
    return file


def _as_read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a file: lists for tuples, texts for names of choices."""
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(run, dict) and "task" in run:
            return run
    except ValueError:
        pass
    raise InvalidRequest(f"{path}: is not what an evaluation wrote; name another directory")


def _read(path: Path) -> dict[Key, Outcome]:
    found: dict[Key, Outcome] = {}
    if not path.stat().st_size:
        return found
    # Not splitlines(), which also splits at characters that models may say.
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        try:
            fields = json.loads(line)
            place = Place(fields["index"], fields["length"], fields["depth"])
            values = {
                name: fields[name]
                for name, field in Outcome.__dataclass_fields__.items()
                if name in fields or field.default is MISSING
            }
            outcome = Outcome(**values | {"answers": tuple(values["answers"])})
            found[Key(fields["task"], fields["preset"], place)] = outcome
        except (ValueError, KeyError, TypeError):
            raise InvalidRequest(
                f"{path}:{number}: is not a finished sample; remove the line and it is run again"
            ) from None
    return found


def _drop_unfinished_line(path: Path) -> None:
    """A process that was killed while it wrote leaves a line without an end."""
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
