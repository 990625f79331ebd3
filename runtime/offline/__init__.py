"""A model in this process, for scripts and notebooks: no server, no ports, no Ray.

>>> from moorage import pipeline
>>> with pipeline("path/to/model", preset="moorage") as pipe:
...     print(pipe("Why is the sky blue?", max_new_tokens=64).text)
"""

from moorage.runtime.offline.pipeline import Pipeline, pipeline

__all__ = ["Pipeline", "pipeline"]
