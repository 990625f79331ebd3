"""Builds the attention of one worker: transfers, selection and the backends that suit its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from moorage.workers.gpu.attention.backend import DecodeBackend, DecodeParts
from moorage.workers.gpu.attention.block_masses import BlockMassSampling
from moorage.workers.gpu.attention.chunk import ChunkAttention
from moorage.workers.gpu.attention.device_keys import DeviceKeys
from moorage.workers.gpu.attention.device_slots import DeviceSlotAttention
from moorage.workers.gpu.attention.exact import ExactAttention
from moorage.workers.gpu.attention.host_memory import HostMemoryAttention
from moorage.workers.gpu.attention.hybrid import HybridAttention
from moorage.workers.gpu.attention.observed import ImportanceCounting, RecallSampling
from moorage.workers.gpu.attention.prefill import PrefillAttention
from moorage.workers.gpu.attention.row_writer import RowWriter
from moorage.workers.gpu.attention.sinks import AttentionSinks
from moorage.workers.gpu.attention.step_attention import StepAttention, WindowBackends
from moorage.workers.gpu.attention.window_decode import HostWindowDecode, WindowDecode
from moorage.workers.gpu.attention.window_device import DeviceWindowDecode
from moorage.workers.gpu.attention.window_prefill import WindowPrefill
from moorage.workers.gpu.attention.window_rings import WindowLayers, WindowRings
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.selection.device_scorer import DeviceScorer
from moorage.workers.gpu.selection.device_selector import DeviceSelector, scores_on_device
from moorage.workers.gpu.selection.key_importance import KeyImportance
from moorage.workers.gpu.selection.reuse import ReusePrevious, SelectiveLayers
from moorage.workers.gpu.selection.selector import BlockSelector, StoreSelector
from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.gpu.transfer.block_loader import BlockLoader
from moorage.workers.gpu.transfer.copy_engine import CopyEngine, DirectCopyEngine
from moorage.workers.gpu.transfer.factory import copy_engine
from moorage.workers.gpu.transfer.key_rows import KeyRowBuffer
from moorage.workers.kv.shards import ShardedKv
from moorage.workers.sizes import piece_blocks
from moorage.workers.spec import KvLayout, ModelSpec, WindowLayout


@dataclass(frozen=True, slots=True)
class Site:
    """Where a worker's attention runs, and on what."""

    kv: ShardedKv
    layout: KvLayout
    device: torch.device
    compute_dtype: torch.dtype
    """The type of prefill's queries and keys."""
    model: ModelSpec
    sinks: tuple[torch.Tensor | None, ...]
    """The learned sinks by layer of the model."""
    settings: EngineSettings
    timer: PartTimer


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """What an engine keeps of its attention."""

    copies: CopyEngine
    loader: BlockLoader
    scorer: DeviceScorer | None
    exact: ExactAttention
    rings: WindowRings
    attention: StepAttention


def build_attention(site: Site, copies: CopyEngine | None = None) -> AttentionParts:
    """The attention of a worker. `copies` None takes the copy engine that suits the device."""
    settings, layout, timer = site.settings, site.layout, site.timer
    piece = settings.piece_blocks or piece_blocks(layout, site.device.type != "cuda")
    copies = copies or copy_engine(site.kv, layout, site.device, piece, settings.dma_bytes)
    loader = BlockLoader(copies, layout, settings.num_slots, piece, site.device, site.compute_dtype, timer)
    scorer = _device_scorer(site)
    importance = KeyImportance(loader, site.kv, layout, timer, scorer)
    writer = RowWriter(site.kv, layout, loader, importance, timer)
    stores = StoreSelector(site.kv, layout, timer)
    selector = _selector(site, stores, scorer)
    sinks = AttentionSinks([site.sinks[layer] for layer in site.model.stored_layers])
    rows = KeyRowBuffer(layout, settings.key_rows, site.device)
    keys = DeviceKeys(site.kv, rows, timer, site.device)
    parts = DecodeParts(loader, selector, scorer is None, keys, writer, sinks, layout, timer)
    decode = _decode_backend(site, parts, isinstance(copies, DirectCopyEngine))
    if layout.anchor_type.needs_importance:
        decode = ImportanceCounting(decode, importance)
    exact = ExactAttention(loader, layout, timer)
    decode = RecallSampling(decode, exact, layout.num_layers)
    decode = BlockMassSampling(decode, exact, layout.num_layers)
    chunk = ChunkAttention(loader, stores, importance, sinks, layout, timer)
    prefill = PrefillAttention(chunk, writer, importance, layout)
    rings = WindowRings(
        WindowLayout.of(site.model, layout), WindowLayers.of(site.model), settings.num_rings, site.device
    )
    attention = StepAttention(decode, prefill, _window_backends(site, rings), site.model, site.device)
    return AttentionParts(copies, loader, scorer, exact, rings, attention)


def _window_backends(site: Site, rings: WindowRings) -> WindowBackends:
    """The backends of window layers that suit the device."""
    on_host = site.device.type == "cpu" and site.settings.in_place
    kind: type[WindowDecode[Any]] = HostWindowDecode if on_host else DeviceWindowDecode
    sinks = AttentionSinks([site.sinks[layer] for layer in site.model.window_layers])
    prefill = WindowPrefill(rings, site.model, sinks, site.compute_dtype, site.timer)
    return WindowBackends(kind(rings, site.model, sinks, site.timer), prefill)


def _decode_backend(site: Site, parts: DecodeParts, is_host: bool) -> DecodeBackend:
    """The backend that suits the device; `is_host` says that its memory is the host's."""
    host = site.kv.host_memory() if site.settings.in_place and is_host else None
    if host is not None:
        return HostMemoryAttention(parts, host, site.model, site.kv.stripe_blocks)
    if site.settings.attend_on == "cpu":
        return HybridAttention(parts, site.kv)
    return DeviceSlotAttention(parts, site.settings.prefetch)


def _device_scorer(site: Site) -> DeviceScorer | None:
    """The one that the settings ask for; None selects by the stores."""
    settings, layout = site.settings, site.layout
    wanted = settings.score_on == "device"
    if settings.score_on == "auto" and site.device.type == "cuda":
        wanted = scores_on_device(site.kv, layout, site.model.group_size, site.device)
    return DeviceScorer(site.kv, layout, site.device, settings.anchor_bytes) if wanted else None


def _selector(site: Site, inner: BlockSelector, scorer: DeviceScorer | None) -> BlockSelector:
    """Policies around what scores: which layers select, and which selections are used again."""
    if scorer is not None:
        inner = DeviceSelector(inner, scorer, site.layout, site.timer)
    return SelectiveLayers(ReusePrevious(inner))
