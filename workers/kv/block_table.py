"""The pages of a session, and how rows are written into them."""

from __future__ import annotations

from dataclasses import dataclass, field

from numpy.typing import ArrayLike

from moorage.workers.errors import InvalidRequest
from moorage.workers.kv.arena import Arena
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.base import RowFormat
from moorage.workers.kv.messages import Attached, Int32, RawPages
from moorage.workers.kv.rows import as_rows, beyond_storage


@dataclass(slots=True)
class BlockTable:
    """One session's pages, the same in all layers, and the tokens written in each layer."""

    session_id: int
    pages: Int32
    num_tokens: list[int]
    raw: RawPages = field(default_factory=RawPages)

    def take_pages(self, held: Attached) -> None:
        """Follows a store that has resized the session."""
        self.pages, raw = held.pages, self.raw
        raw.open_pages, raw.sink_pages = held.open_pages, held.sink_pages
        if not len(raw.open_pages):
            raw.block = [-1] * len(self.num_tokens)

    def check_layer(self, layer: int) -> None:
        """Raises InvalidRequest for a layer that does not exist."""
        if not 0 <= layer < len(self.num_tokens):
            raise InvalidRequest(
                f"session {self.session_id}: no layer {layer} among {len(self.num_tokens)}; check the model"
            )

    def check_rows(self, layer: int, start: int, end: int, block_size: int) -> None:
        """Raises InvalidRequest unless rows [start, end) leave no hole and fit the session's pages."""
        self.check_layer(layer)
        if not 0 <= start <= min(end, self.num_tokens[layer]):
            raise InvalidRequest(
                f"session {self.session_id}, layer {layer}: rows [{start}, {end}) after "
                f"{self.num_tokens[layer]} tokens leave a hole; append in order"
            )
        if end > len(self.pages) * block_size:
            raise InvalidRequest(
                f"session {self.session_id}: token {end} is beyond the {len(self.pages) * block_size} "
                "reserved; grow the session first"
            )

    def check_row(self, position: int, block_size: int) -> None:
        """`check_rows` of one row in all layers."""
        layer = self.num_tokens.index(min(self.num_tokens))
        self.check_rows(layer, position, position + 1, block_size)

    def begin_row(self, position: int, block_size: int) -> None:
        """Counts the row at `position`, which is yet to be written, as the last in all layers."""
        self.check_row(position, block_size)
        self.num_tokens = [position + 1] * len(self.num_tokens)
        self.raw.block = [position // block_size] * len(self.num_tokens)

    def pages_of(self, layer: int, blocks: Int32, block_size: int) -> Int32:
        """Pages of written `blocks`; raises InvalidRequest for a block without a token in `layer`."""
        self.check_layer(layer)
        num_written = -(-self.num_tokens[layer] // block_size)
        if len(blocks) and not (blocks.min() >= 0 and blocks.max() < num_written):
            raise InvalidRequest(
                f"session {self.session_id}, layer {layer}: blocks {blocks.min()} to {blocks.max()} asked, "
                f"{num_written} are written; gather written blocks only"
            )
        return self.pages[blocks]

    def write(self, arena: Arena, layer: int, start: int, keys: ArrayLike, values: ArrayLike) -> int:
        """Writes rows [T, Hkv, D] from token `start` on; returns the token after the last."""
        size, format = arena.layout.block_size, format_of(arena.layout.kv_type)
        assert isinstance(format, RowFormat)
        keys, values = as_rows(self.session_id, arena.layout, keys, values)
        end = start + len(keys)
        self.check_rows(layer, start, end, size)
        if end > start:
            if not format.encode(arena.kv[layer], self.pages, start, keys, values):
                raise beyond_storage(layer, arena.layout.kv_type)
            # Pages are reused without a sweep: the first write into a block clears what it does not fill, so no
            # read of a written block ever shows another session's rows, and no drop has to wait for gigabytes.
            last, filled = divmod(end, size)
            if filled and start <= last * size:
                format.clear(arena.kv[layer], int(self.pages[last]), filled)
        self.num_tokens[layer] = end
        return end
