"""Sessions as clients know them: operations on them, what they may reuse of one another, and their files."""
