"""Load on a running server: conversations over long documents, and what its clients see."""
