from __future__ import annotations

import subprocess
import sys


def test_an_actor_does_not_load_torch() -> None:
    """It would cost each of them more than a hundred megabytes, which `runtime size` does not count."""
    code = "import sys, moorage.workers.kv.actor, moorage.workers.kv.warm_up; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
