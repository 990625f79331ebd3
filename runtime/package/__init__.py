"""Moorage serves very long prompts with models whose KV cache lies in CPU memory.

`moorage.client` is the client; the commands are `moorage` and `runtime`, two names of one program.
"""

import sys

__version__ = "0.1.0"

# An editable installation finds source folders that have no `__init__.py` by an entry of sys.path, which Python
# looks for on the path of the package above them. The list is empty in any other installation.
__path__ += [entry for entry in sys.path if entry.startswith("__editable__.moorage-")]
