"""A list of operations on few rows of hidden states, run by one compiled call on a CPU.

Between two attentions a decoder does a dozen small operations. One by one each costs microseconds of a caller's
time, as much as a product with a small matrix. Here they are a table of numbers: addresses of float32 arrays, sizes.
"""

from moorage.kernels.step_program.cpu import run_program
from moorage.kernels.step_program.program import Gate, Program, Rows

__all__ = ["Gate", "Program", "Rows", "run_program"]
