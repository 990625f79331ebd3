"""The cluster file: its keys, sources, presets and checks, and files of other systems."""

from moorage.runtime.config.load import build_config, load_cluster_config
from moorage.runtime.config.schema import ClusterConfig

__all__ = ["ClusterConfig", "build_config", "load_cluster_config"]
