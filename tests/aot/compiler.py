"""Compiles Triton kernels for GPUs that are not there, and reads what came out.

What is compiled is what a launcher would launch: `recorded` runs the launcher on tensors of the meta device and keeps
each kernel with its arguments, from which the specialisation follows as at a real launch (an integer that is 1 is a
constant, one that 16 divides says so, pointers are aligned to 16 bytes).

The interpreter's mode is fixed when a kernel is decorated, so this belongs in a process without TRITON_INTERPRET.
"""

import math
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from vitgan_kernels import triton_support

TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (80, 86, 89, 90, 100, 120)},
    **{name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942", "gfx950")},
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
# Bytes a block can have: on consumer cards (8.6, 8.9, 12.0) below the 163 to 227 KiB of A100 to B200, and the tables
# are the same; on AMD GPUs before gfx950 the local data share of a compute unit.
SHARED_LIMIT = {"cuda": 99 * 1024, "hip": 64 * 1024}
TENSOR_INSTRUCTIONS = {
    **dict.fromkeys(TARGETS, ("HMMA",)),
    "sm_90": ("HMMA", "HGMMA"),
    "sm_100": ("HMMA", "UTCHMMA"),
    **dict.fromkeys(("gfx90a", "gfx942", "gfx950"), ("v_mfma",)),
    "gfx1100": ("v_wmma",),
}
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}


@dataclass(frozen=True)
class Case:
    """A launcher's call at one shape and dtype. Everything that `run` launches, on meta tensors, is compiled."""

    name: str
    run: Callable[[], Any]
    tensor_cores: bool = True  # whether each kernel must use them
    quick: bool = False  # part of the gate of every run; the others are for --all


@dataclass(frozen=True)
class Launch:
    """One kernel with the arguments it was launched with."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]
    programs: int


class Instruction(NamedTuple):
    """A machine instruction without its operands; the address that a branch goes to."""

    address: int
    operation: str
    target: int | None


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a launch."""

    registers: int
    spills: int  # loads and stores of registers that did not fit, or bytes of stack
    shared: int  # bytes
    tensor_instructions: int
    instructions: int


def recorded(case: Case, target: str) -> list[Launch]:
    """The launches of a case on a target, in order; nothing runs."""
    launches: list[Launch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        arguments = dict(zip(kernel.arg_names, args, strict=False))
        options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
        arguments |= {name: value for name, value in kwargs.items() if name in kernel.arg_names}
        launches.append(Launch(kernel, arguments, options, math.prod(grid)))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(triton_support, "target", return_value=TARGETS[target].backend),
        mock.patch.object(
            triton_support, "generation", return_value=int(target[3:-1]) if TARGETS[target].backend == "cuda" else 9
        ),
    ):
        case.run()
    return launches


def compiled(launch: Launch, target: str) -> Compiled:
    """What the compiler makes of a launch on a target."""
    read = _read_cuda if TARGETS[target].backend == "cuda" else _read_hip
    return read(built(launch, target), target)


def built(launch: Launch, target: str) -> Any:
    """Triton's compiled kernel of a launch on a target."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if (
            parameter.is_constexpr
            or value is None
            or (_is_int(value) and value == 1 and not parameter.do_not_specialize)
        ):
            signature[parameter.name], constants[(index,)] = "constexpr", value
            continue
        signature[parameter.name] = _type(value)
        divisible = isinstance(value, torch.Tensor) or (_is_int(value) and value % 16 == 0)
        if divisible and not parameter.do_not_specialize:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=TARGETS[target], options=launch.options)


def complaints(result: Compiled, target: str, tensor_cores: bool) -> list[str]:
    """What is wrong with a compiled kernel, if anything."""
    limit = SHARED_LIMIT[TARGETS[target].backend]
    found = []
    if result.spills:
        found.append(f"spills ({result.spills})")
    if result.shared > limit:
        found.append(f"{result.shared} bytes of shared memory, more than {limit}")
    if tensor_cores and not result.tensor_instructions:
        found.append(f"no tensor-core instruction ({', '.join(TENSOR_INSTRUCTIONS[target])})")
    return found


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def disassembled(kernel: Any) -> tuple[list[Instruction], str]:
    """The instructions of a kernel for CUDA, in order, and the resources it uses, as a line."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        listing, usage = (
            subprocess.run([tools / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "-res-usage")
        )
    found = re.findall(
        r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?([A-Z][A-Za-z0-9_.]*)(?: .*?\b0x([0-9a-f]+) *;)?",
        listing,
        re.MULTILINE,
    )
    return [
        Instruction(int(address, 16), operation, int(target, 16) if operation.startswith("BRA") and target else None)
        for address, operation, target in found
    ], usage


def _read_cuda(kernel: Any, target: str) -> Compiled:
    instructions, usage = disassembled(kernel)
    operations = [instruction.operation for instruction in instructions]
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert match is not None, usage
    return Compiled(
        registers=int(match[1]),
        spills=int(match[2]) + sum(operation.startswith(("LDL", "STL")) for operation in operations),
        shared=kernel.metadata.shared,
        tensor_instructions=sum(operation.startswith(TENSOR_INSTRUCTIONS[target]) for operation in operations),
        instructions=len(operations),
    )


def _read_hip(kernel: Any, target: str) -> Compiled:
    assembly = kernel.asm["amdgcn"]

    def field(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", assembly)
        assert match is not None, name
        return int(match[1])

    operations = re.findall(r"^\s+([vsdgb][a-z]*_[a-z0-9_]+)", assembly, re.MULTILINE)
    return Compiled(
        registers=field("vgpr_count"),
        spills=field("vgpr_spill_count") + field("private_segment_fixed_size"),
        shared=kernel.metadata.shared,
        tensor_instructions=sum(operation.startswith(TENSOR_INSTRUCTIONS[target]) for operation in operations),
        instructions=len(operations),
    )
