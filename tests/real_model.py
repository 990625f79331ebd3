"""SmolLM2-135M-Instruct as a GGUF file, for tests that need a real language model."""

from __future__ import annotations

from pathlib import Path

import pytest

from moorage.runtime.planning.real_model import fetch_real_model
from moorage.workers.errors import Unavailable


def smollm2() -> Path:
    """The file, fetched once for all tests and runs; skips the test, with the reason, where it can't be fetched."""
    try:
        return fetch_real_model(timeout_s=120)
    except Unavailable as error:
        pytest.skip(str(error))
