"""The cluster file: its keys, sources, presets and checks, and files of other systems."""

from moorage.runtime.config.schema import ClusterConfig, build_config, load_cluster_config

__all__ = ["ClusterConfig", "build_config", "load_cluster_config"]
