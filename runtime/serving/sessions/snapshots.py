"""The folder of saved sessions: one folder for each, with a manifest and the files of its blocks.

A session is written into a folder whose name begins with a dot, and then renamed, so that what a crash left half-way
is never taken for a session. Folders have mode 0700 and files 0600.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from moorage.runtime.config.units import format_bytes
from moorage.runtime.serving.sessions.cut_answers import Draw
from moorage.runtime.serving.sessions.keys import session_key
from moorage.workers.errors import InvalidRequest, ResourceExhausted, Unavailable
from moorage.workers.spec import KvLayout, MemorySpec

VERSION = 2
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class BlockFile:
    """The blocks of one KV actor."""

    name: str
    num_bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class Store:
    """What a saved session and the server must have in common."""

    fingerprint: str
    """The fingerprint of the model."""
    layout: dict[str, Any]
    """The fields of KvLayout with their values."""
    stripe_blocks: int
    actors: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is known of a saved session but its blocks."""

    name: str
    tenant: str
    saved_s: float
    model: str
    store: Store
    first_actor: int
    prompt_tokens: int
    memory: MemorySpec
    token_ids: tuple[int, ...]
    files: tuple[BlockFile, ...]
    """The block files in the order of the KV actors."""
    draw: Draw | None = None
    """The sampling state of an answer that may go on."""
    version: int = VERSION

    @property
    def num_bytes(self) -> int:
        """Bytes of all block files."""
        return sum(file.num_bytes for file in self.files)


_MANIFESTS = TypeAdapter(Manifest)
_LAYOUTS = TypeAdapter(KvLayout)


def layout_fields(layout: KvLayout) -> dict[str, Any]:
    """A layout as a manifest has it; the digest of its quantizer stands for the formats of layers."""
    fields: dict[str, Any] = _LAYOUTS.dump_python(layout, mode="json", exclude={"layer_kv_types"})
    return fields


def check_same(saved: Store, served: Store) -> None:
    """Raises InvalidRequest, with the field, where a saved session is not of this model and these settings."""
    for field in ("fingerprint", "stripe_blocks", "actors"):
        _check_field(field, getattr(saved, field), getattr(served, field))
    for field in sorted({*saved.layout, *served.layout}):
        _check_field(f"layout.{field}", saved.layout.get(field), served.layout.get(field))


def _check_field(field: str, saved: object, served: object) -> None:
    if saved != served:
        what = "another model" if field == "fingerprint" else "other settings"
        raise InvalidRequest(
            f"the saved session is of {what}: {field} is {saved!r} in its manifest and {served!r} here; load it "
            "where it was saved, or delete it"
        )


class Snapshots:
    """The saved sessions in one folder, as they are found at the start and written after it."""

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        """Raises Unavailable when the folder can't be made. What was left half-way is removed."""
        self._folder, self._max_bytes = folder, max_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            places = sorted(folder.iterdir(), key=lambda place: place.stat().st_mtime)
        except OSError as error:
            raise Unavailable(
                f"sessions.path: {folder}: {error.strerror}; give a folder to write to"
            ) from None
        self.held: dict[str, tuple[Path, Manifest]] = {}
        """The saved sessions, those saved first before others. A folder without a readable manifest is left alone."""
        for place in places:
            if place.name.startswith("."):
                shutil.rmtree(place, ignore_errors=True)
            elif (place / _MANIFEST).is_file():
                with suppress(InvalidRequest):
                    manifest = read_manifest(place)
                    self.held[session_key(manifest.tenant, manifest.name)] = place, manifest

    def begin(self) -> Path:
        """A new private folder for the files of a session."""
        place = self._folder / f".{secrets.token_hex(8)}"
        place.mkdir(mode=0o700)
        return place

    def publish(self, place: Path, manifest: Manifest) -> None:
        """Completes a folder of `begin`; it takes the place of what was saved of the session before.

        Raises ResourceExhausted where all saved sessions may not have so many bytes.
        """
        key = session_key(manifest.tenant, manifest.name)
        self._make_room(key, manifest.num_bytes)
        write_manifest(place, manifest)
        final = self._folder / place.name[1:]
        place.rename(final)
        _sync(self._folder)
        self.remove(key)
        self.held[key] = final, manifest

    def remove(self, key: str) -> bool:
        """Removes what was saved of a session; False where nothing was."""
        found = self.held.pop(key, None)
        if found is not None:
            shutil.rmtree(found[0], ignore_errors=True)
        return found is not None

    def rename(self, key: str, tenant: str, name: str) -> None:
        """Gives what was saved of a session another name; nothing where nothing was."""
        found = self.held.pop(key, None)
        if found is not None:
            place, manifest = found[0], replace(found[1], name=name)
            write_manifest(place, manifest)
            self.held[session_key(tenant, name)] = place, manifest

    def _make_room(self, key: str, num_bytes: int) -> None:
        if self._max_bytes is None:
            return
        if num_bytes > self._max_bytes:
            raise ResourceExhausted(
                f"the session takes {format_bytes(num_bytes)} and sessions.max_bytes allows "
                f"{format_bytes(self._max_bytes)}; raise it"
            )
        others = [other for other in self.held if other != key]
        total = sum(self.held[other][1].num_bytes for other in others)
        for other in others:
            if total + num_bytes > self._max_bytes:
                total -= self.held[other][1].num_bytes
                self.remove(other)


def write_manifest(place: Path, manifest: Manifest) -> None:
    """Writes the manifest of a folder, or replaces it; never a part of it."""
    fields = _MANIFESTS.dump_python(manifest, mode="json")
    text = json.dumps(fields | {"checksum": _checksum(fields)}, indent=1)
    scratch = place / f".{_MANIFEST}"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.rename(place / _MANIFEST)


def read_manifest(place: Path) -> Manifest:
    """The manifest of a folder. Raises InvalidRequest, with the field, for one that is not as it was written."""
    file = place / _MANIFEST
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        checksum = fields.pop("checksum", None)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InvalidRequest(f"{file}: can't be read ({error}); delete the saved session") from None
    if fields.get("version") != VERSION:
        raise InvalidRequest(
            f"{file}: version: {fields.get('version')!r}, and this server reads {VERSION}; delete the saved session"
        )
    if checksum != _checksum(fields):
        raise InvalidRequest(
            f"{file}: checksum: the manifest was changed or damaged; delete the saved session"
        )
    try:
        manifest: Manifest = _MANIFESTS.validate_python(fields, strict=False)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise InvalidRequest(
            f"{file}: {field}: {error.errors()[0]['msg']}; delete the saved session"
        ) from None
    return manifest


def sizes(place: Path, names: Sequence[str]) -> list[int]:
    """Bytes of some files of a folder."""
    return [(place / name).stat().st_size for name in names]


def _checksum(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=32).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
