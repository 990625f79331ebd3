"""A compiled function run by several threads at once, for work that threads take from a common counter.

A parallel loop of Numba compiles its body three times and pays for each array that the body sees: half a minute where
records of forty arrays are passed. Here the body is compiled once, and the threads are those of Numba's own pool.
"""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.ufunc.parallel import _launch_threads

_BYTE, _I64 = ir.IntType(8), ir.IntType(64)
_POINTER = _BYTE.as_pointer()
_SHARE = ir.FunctionType(
    ir.VoidType(), [_POINTER.as_pointer(), _I64.as_pointer(), _I64.as_pointer(), _POINTER]
)


@intrinsic
def in_parallel(typing: Any, body: Any, threads: Any, values: Any) -> Any:
    """Runs body(*values) once for each of `threads` (int64) of Numba's threads; whether none of them raised.

    `body` is a compiled function that returns nothing, `values` a tuple that lives until all have returned. Whoever
    calls a kernel that does this must have started the threads, see `numba_flags.parallel_limits`.
    """
    if not isinstance(body, types.Dispatcher) or not isinstance(values, types.BaseTuple):
        return None
    called = body.get_call_type(typing, tuple(values), {})

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _launch_threads()  # makes the pool's symbols known to the compiler
        compiled = body.dispatcher.overloads[called.args]
        context.add_linking_libs([compiled.library])
        held = cgutils.alloca_once_value(builder, args[2])
        raised = cgutils.alloca_once_value(builder, _BYTE(0))
        share = _share(context, builder.module, compiled, called, held.type, len(values))
        pointers = cgutils.pack_array(builder, [builder.bitcast(part, _POINTER) for part in (held, raised)])
        sizes = cgutils.pack_array(builder, [args[1]])
        steps = cgutils.pack_array(builder, [_I64(0), _I64(0)])  # every share gets the same two pointers
        given = [cgutils.alloca_once_value(builder, part) for part in (pointers, sizes, steps)]
        kind = ir.FunctionType(ir.VoidType(), [_POINTER] * 5 + [_I64] * 3)
        run = cgutils.get_or_insert_function(builder.module, kind, "numba_parallel_for")
        arguments = [builder.bitcast(part, _POINTER) for part in (share, *given)]
        builder.call(run, [*arguments, _POINTER(None), _I64(0), _I64(2), args[1]])
        return builder.icmp_unsigned("==", builder.load(raised), _BYTE(0))

    return types.boolean(body, types.int64, values), build


def _share(context: Any, module: Any, compiled: Any, called: Any, held: Any, count: int) -> ir.Function:
    """What one thread runs, in the form of a universal function's inner loop."""
    share = ir.Function(module, _SHARE, name=module.get_unique_name("share_of_threads"))
    share.linkage = "internal"
    builder = ir.IRBuilder(share.append_basic_block())
    pointers = [builder.load(builder.gep(share.args[0], [_I64(place)])) for place in range(2)]
    values = builder.load(builder.bitcast(pointers[0], held))
    parts = cgutils.unpack_tuple(builder, values, count)
    status, _ = context.call_internal_no_propagate(builder, compiled.fndesc, called, parts)
    with builder.if_then(status.is_error, likely=False):
        builder.store(_BYTE(1), pointers[1])
    builder.ret_void()
    return share


@intrinsic
def take(_typing: Any, counter: Any) -> Any:
    """counter[0], int64, and adds one to it: each value goes to one thread alone."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, _I64(1), "monotonic")

    return types.int64(counter), build
