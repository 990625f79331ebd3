"""The quantizer of a cluster file: used for its own model alone, and a part of what a store is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.planning.host import deployment_of
from moorage.runtime.planning.memory import context_sizes
from moorage.runtime.planning.worker_settings import worker_settings
from moorage.runtime.serving.sessions.fingerprint import model_fingerprint
from moorage.runtime.serving.sessions.snapshots import Store, check_same, layout_fields
from moorage.workers.errors import InvalidConfig, InvalidRequest
from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer, normal_levels
from moorage.workers.kv.formats.quantizer_array import digest_of
from moorage.workers.kv.formats.quantizer_file import QuantizerHeader, write_quantizers
from moorage.workers.spec import KvType, ModelSpec
from tests.tiny_models import TinyModel, build_tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def made_for(spec: ModelSpec, scale: float = 1.0) -> Quantizer:
    sizes = np.full((spec.num_kv_heads, spec.head_dim), scale, np.float32)
    layer = LayerQuantizer(normal_levels(3), normal_levels(3), sizes, 0 * sizes, -sizes, sizes)
    return Quantizer(3, (layer,) * spec.num_stored_layers)


def written(file: Path, spec: ModelSpec, fingerprint: str, scale: float = 1.0) -> Path:
    sizes = spec.num_stored_layers, spec.num_kv_heads, spec.head_dim
    header = QuantizerHeader(fingerprint, "tiny", (3,), *sizes, {}, {})
    write_quantizers(file, header, [made_for(spec, scale)])
    return file


def config(model: TinyModel, file: Path | None, **long_context: Any) -> ClusterConfig:
    store = {} if file is None else {"quantizer": file}
    sections = {"memory": {"preset": "kvquant"}, "long_context": long_context, "kv_store": store}
    return ClusterConfig.model_validate(
        {"model": {"path": model.directory}, "gpu_workers": {"device": "cpu"}} | sections
    )


def test_the_stores_get_it_and_are_sized_by_it(model: TinyModel, tmp_path: Path) -> None:
    file = written(tmp_path / "q.safetensors", model.spec, model_fingerprint(model.directory))
    chosen = config(model, file)
    plan, without = deployment_of(chosen, model.spec), deployment_of(config(model, None), model.spec)
    assert plan.layout.quantizer == digest_of(made_for(model.spec))
    assert worker_settings(chosen, plan).quantizer is plan.quantizer is not None
    assert plan.layout.block_bytes < without.layout.block_bytes
    assert plan.layout.quantizer_bytes == 4 * model.spec.num_stored_layers * (
        1 + 2 * 16 + (4 + model.spec.head_dim) * model.spec.num_kv_heads * model.spec.head_dim
    )
    (sizes, others) = (context_sizes(each, 4096) for each in (plan, without))
    assert sizes.reserved_bytes < others.reserved_bytes


def test_one_of_another_model_or_of_other_bits_is_refused(model: TinyModel, tmp_path: Path) -> None:
    other = written(tmp_path / "other.safetensors", model.spec, "0" * 32)
    with pytest.raises(InvalidConfig, match="quantizer of another model"):
        deployment_of(config(model, other), model.spec)
    file = written(tmp_path / "q.safetensors", model.spec, model_fingerprint(model.directory))
    with pytest.raises(InvalidConfig, match="no quantizer for NUQ2, only for NUQ3"):
        deployment_of(config(model, file, kv_type="NUQ2"), model.spec)
    with pytest.raises(InvalidConfig, match="check the path of the quantizer file"):
        deployment_of(config(model, tmp_path / "absent"), model.spec)


def test_sessions_saved_under_another_one_are_not_loaded(model: TinyModel, tmp_path: Path) -> None:
    stores = []
    for scale in (1.0, 2.0):
        file = written(tmp_path / f"{scale}", model.spec, model_fingerprint(model.directory), scale)
        layout = deployment_of(config(model, file), model.spec).layout
        assert layout.kv_type is KvType.NUQ3
        stores.append(Store("f", layout_fields(layout), 8, 1))
    with pytest.raises(InvalidRequest, match=r"layout\.quantizer is"):
        check_same(*stores)
