"""Calls of a compiled function for the units of some work, by address, so that any thread can make them."""

# ruff: noqa: ARG001 - the arguments of an intrinsic are its signature; their values come in `args`.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD, _BYTES = ir.IntType(64), ir.IntType(8).as_pointer()
_KIND = ir.FunctionType(ir.VoidType(), [_WORD, _WORD])


@intrinsic
def unit_call(typing: Any, function: Any, arguments: Any) -> Any:
    """(address of code, address of data) with which `call_unit` calls function(unit, *arguments).

    `function` is compiled, returns nothing and raises nothing. `arguments` is a tuple. The data lie in the caller's
    frame: they are gone when it returns. Arrays among them do not count who uses them, since threads that count the
    same array's users wait for each other.
    """
    if not isinstance(function, types.Dispatcher) or not isinstance(arguments, types.BaseTuple):
        return None
    kinds = (types.int64, *arguments.types)
    wanted = function.get_call_type(typing, kinds, {})

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        compiled = function.dispatcher.get_compile_result(wanted)
        context.active_code_library.add_linking_library(compiled.library)
        held = cgutils.alloca_once_value(builder, without_owner(context, builder, arguments, args[1]))
        name = context.mangler(f"unit_call_{compiled.fndesc.unique_name}", kinds)
        code = builder.module.globals.get(name)
        if code is None:
            code = ir.Function(builder.module, _KIND, name)
            code.linkage = "internal"
            inner = ir.IRBuilder(code.append_basic_block())
            data = inner.load(inner.inttoptr(code.args[1], held.type))
            values = [code.args[0], *cgutils.unpack_tuple(inner, data)]
            values = [
                context.cast(inner, value, kind, into)
                for value, kind, into in zip(values, kinds, wanted.args, strict=True)
            ]
            context.call_internal_no_propagate(inner, compiled.fndesc, wanted, values)
            inner.ret_void()
        addresses = [builder.ptrtoint(each, _WORD) for each in (code, held)]
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(types.int64, 2)(function, arguments), build


def without_owner(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """`value` with arrays that are not owned, for which Numba's counting of references does nothing."""
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        for owner in ("meminfo", "parent"):
            setattr(array, owner, cgutils.get_null_value(getattr(array, owner).type))
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for at, each in enumerate(kind.types):
            part = without_owner(context, builder, each, builder.extract_value(value, at))
            value = builder.insert_value(value, part, at)
    return value


@intrinsic
def call_unit(_typing: Any, code: Any, unit: Any, data: Any) -> Any:
    """Calls the function of `unit_call` for one unit."""

    def build(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        builder.call(builder.inttoptr(args[0], _KIND.as_pointer()), [args[1], args[2]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), build
