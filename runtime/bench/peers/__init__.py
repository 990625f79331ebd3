"""One model in several engines: each in a process of its own, one working at a time."""
