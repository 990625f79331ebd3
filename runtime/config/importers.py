"""Configurations of ktransformers, InfLLM and LMDeploy as a `cluster.yaml`, with what could not be carried over.

Every key of the given file ends up in the result or in a note that says why not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moorage.runtime.config.import_files import Given, read_forms
from moorage.runtime.config.import_rules import (
    INFLLM,
    KTRANSFORMERS,
    KTRANSFORMERS_COMMAND,
    KTRANSFORMERS_FLAT,
    KTRANSFORMERS_KEYS,
    LMDEPLOY,
    LMDEPLOY_KEYS,
    Imported,
    Values,
)
from moorage.runtime.config.load import build_config
from moorage.runtime.config.schema import ClusterConfig, ModelSection
from moorage.runtime.config.source import Source
from moorage.runtime.config.yaml_reading import read_text
from moorage.workers.errors import InvalidConfig

INFLLM_TYPES = {
    "inf-llm": "inf-llm",
    "infinite-lm": "infinite-lm",
    "stream-llm": "stream-llm",
    "origin": "full",
}
"""Its model.type -> our preset."""


def import_config(path: Path) -> Imported:
    """Reads a configuration of ktransformers, InfLLM or LMDeploy, in any form in which their pages show it.

    Raises InvalidConfig when the file is none of them, or is a cluster file already.
    """
    text = read_text(path, "a configuration of ktransformers, InfLLM or LMDeploy")
    for given in read_forms(text, str(path)):
        by_form = given.is_lmdeploy or given.is_ktransformers_command
        if not by_form and _is_cluster_file(given.values):
            raise InvalidConfig(
                f"{path}: is a Moorage cluster file already, so nothing is to be imported; check it with "
                f"`runtime config {path}`"
            )
        found = _recognised(given)
        if found is not None:
            found.notes.extend(given.notes)
            _check(found)
            return found
    raise InvalidConfig(
        f"{path}: neither a ktransformers config.yaml (long_context:, or its keys alone) or command line, nor an "
        "InfLLM YAML (model: with a type), nor LMDeploy engine arguments (session_len, cache_max_entry_count, ..., "
        "an lmdeploy command line or a TurbomindEngineConfig(...) call)"
    )


def _recognised(given: Given) -> Imported | None:
    values = given.values
    model = values.get("model")
    if given.is_lmdeploy:
        return _lmdeploy(values)
    if given.is_ktransformers_command:
        return _ktransformers_command(values)
    if isinstance(values.get("long_context"), dict):
        return _ktransformers(values)
    if isinstance(model, dict) and ("type" in model or "n_local" in model):
        return _infllm(values, model)
    if values.keys() & KTRANSFORMERS_KEYS:
        return _ktransformers_page(values)
    if values.keys() & LMDEPLOY_KEYS:
        return _lmdeploy(values)
    return None


def _is_cluster_file(values: Values) -> bool:
    """Whether every section is one of ours, the model with nothing but our keys."""
    model = values.get("model")
    own_model = (
        isinstance(model, dict) and "path" in model and model.keys() <= ModelSection.model_fields.keys()
    )
    return own_model and values.keys() <= ClusterConfig.model_fields.keys()


def _check(found: Imported) -> None:
    """Notes what the result still lacks to be valid."""
    if "path" not in found.sections.get("model", {}):
        found.notes.append("model.path: not named in this file; set it")
    values: dict[str, Any] = {"model": {"path": "."}} | found.sections
    values["model"] = {"path": "."} | values["model"]
    try:
        build_config(Source(Path("result"), values))
    except InvalidConfig as error:
        found.notes.append(f"still to mend: {error}")


def _ktransformers(values: Values) -> Imported:
    found = Imported("ktransformers")
    found.put("memory.preset", "ktransformers")
    KTRANSFORMERS.apply(values["long_context"], found, "long_context.")
    _ktransformers_rest({key: value for key, value in values.items() if key != "long_context"}, found)
    return found


def _ktransformers_page(values: Values) -> Imported:
    """The keys as its page lists them, without the section that they stand in."""
    found = Imported("ktransformers")
    found.put("memory.preset", "ktransformers")
    KTRANSFORMERS_FLAT.apply({key: values[key] for key in values if key in KTRANSFORMERS_KEYS}, found)
    _ktransformers_rest({key: values[key] for key in values if key not in KTRANSFORMERS_KEYS}, found)
    return found


def _ktransformers_command(values: Values) -> Imported:
    """Its command line. Where it names a GGUF file, that has the configuration and the tokenizer too."""
    found = Imported("ktransformers")
    found.put("memory.preset", "full")
    if "gguf_path" in values and "model_path" in values:
        found.notes.append(f"model_path: {values['model_path']}: the GGUF file has all that the model needs")
        values = {key: value for key, value in values.items() if key != "model_path"}
    KTRANSFORMERS_COMMAND.apply(values, found)
    return found


def _ktransformers_rest(values: Values, found: Imported) -> None:
    for name, section in values.items():
        if name == "ext" and isinstance(section, dict) and "cpu_infer" in section:
            found.put("long_context.threads_num", section["cpu_infer"])
        elif name != "ext":
            found.notes.append(f"{name}: concerns other parts of ktransformers, not its long context")


def _infllm(values: Values, model: Values) -> Imported:
    found = Imported("InfLLM")
    kind = str(model.get("type", "inf-llm"))
    if kind not in INFLLM_TYPES:
        raise InvalidConfig(f"model.type: {kind[:40]} is not one of {', '.join(INFLLM_TYPES)}; mend the file")
    found.put("memory.preset", INFLLM_TYPES[kind])
    INFLLM.apply({key: value for key, value in model.items() if key != "type"}, found, "model.")
    INFLLM.apply({key: value for key, value in values.items() if key != "model"}, found)
    return found


def _lmdeploy(values: Values) -> Imported:
    found = Imported("LMDeploy")
    found.put("memory.preset", "lmdeploy")
    LMDEPLOY.apply(values, found)
    return found
