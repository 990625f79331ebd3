"""Where queries see keys, and the rotations that follow."""
