"""`njit` of kernels: what compiled code calls is optimised within its callers, once, and never by itself.

Numba optimises each function, makes machine code of it, links it into each of its callers, and optimises these again:
code that is ten calls deep is optimised ten times. Here a function that compiled code calls becomes a *part*: it is
translated for LLVM, and nothing else is done to it. A function that Python calls is linked with its parts, optimised
once, and kept in Numba's disk cache. One that is called in both ways is compiled in both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core.caching import NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering


class _PartLibrary(JITCodeLibrary):  # type: ignore[misc]  # Numba has no types
    """LLVM's code of a part, for its callers to link."""

    def _optimize_final_module(self) -> None:
        """Is left to what is called from Python."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):  # type: ignore[misc]  # Numba has no types
    """Translates a part. Callers find it by an object that is nothing but a key, since there is no machine code."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        flags = state.flags
        flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        super().run_pass(state)
        key = object()
        state.targetctx.insert_user_function(key, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=key)
        return True


class _PartCompiler(Compiler):  # type: ignore[misc]  # Numba has no types
    def define_pipelines(self) -> list[Any]:
        pipelines: list[Any] = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.passes = [
                (_PartLowering if each is NativeLowering else each, description)
                for each, description in pipeline.passes
            ]
            pipeline.finalize()
        return pipelines


class KernelDispatcher(CPUDispatcher):  # type: ignore[misc]  # Numba has no types
    """A compiled function and its part."""

    overloads: dict[Any, Any]
    _cache: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._parts: dict[Any, Any] = {}

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """The template for a caller whose types are inferred."""
        with self._as_part():
            return super().get_call_template(args, kws)

    def get_compile_result(self, sig: Any) -> Any:
        """The compiled part for `unit_call`."""
        with self._as_part():
            return super().get_compile_result(sig)

    def get_overload(self, sig: Any) -> Any:
        """The compiled part for a caller that is translated."""
        with self._as_part():
            return super().get_overload(sig)

    def add_overload(self, cres: Any) -> None:
        """Keeps what was compiled. Only what Python may call is told to the code that looks arguments up."""
        if self.overloads is self._parts:
            self.overloads[tuple(cres.signature.args)] = cres
            return
        super().add_overload(cres)
        # Nothing else sets those of parts, since they had no machine code.
        for environment in cres._find_referenced_environments():
            cres.codegen.set_env(environment.env_name, environment)

    @contextmanager
    def _as_part(self) -> Iterator[None]:
        """What is compiled or looked up meanwhile is the part."""
        with global_compiler_lock:
            compiler, whole = self._compiler, (self.overloads, self._cache, self._compiler.pipeline_class)
            self.overloads, self._cache, compiler.pipeline_class = self._parts, NullCache(), _PartCompiler
            try:
                yield
            finally:
                self.overloads, self._cache, compiler.pipeline_class = whole


def njit(*, cache: bool, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiles as `numba.njit` does, with options by name."""

    def decorate(function: Callable[..., Any]) -> KernelDispatcher:
        dispatcher = KernelDispatcher(
            function, targetoptions={**options, "nopython": True, "boundscheck": None}
        )
        if cache:
            dispatcher.enable_caching()
        return dispatcher

    return decorate
