"""What the Triton kernels of decode attention over slots and over packed blocks share."""
