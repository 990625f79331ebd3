"""The cluster file: its keys, sources, presets and checks, and files of other systems."""
