"""How often a compiled Triton kernel does what it says: its loops, counted with the arguments of a launch.

Triton's own intermediate form keeps loops as loops, with their bounds as scalar arithmetic on the arguments; the
machine code has the same loops in the same order. Program 0 stands for all: tiles at a ragged edge do the work of whole
ones.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

LOOP = re.compile(r"(?:%[\w:]+ = )?scf\.for %(\w+) = (%\w+) to (%\w+) step (%\w+)")
VALUE = re.compile(r"%(\w+) = (arith\.\w+|tt\.get_program_id)\s*(.*)")
DOT = re.compile(r"tt\.dot .*: tensor<(\d+)x(\d+)x(\w+)> \* tensor<\d+x(\d+)x\w+>")
BINARY: dict[str, Callable[[int, int], int]] = {
    "arith.addi": lambda a, b: a + b,
    "arith.subi": lambda a, b: a - b,
    "arith.muli": lambda a, b: a * b,
    "arith.divsi": lambda a, b: a // b,
    "arith.remsi": lambda a, b: a % b,
    "arith.minsi": min,
    "arith.maxsi": max,
}


@dataclass
class Work:
    """Of one program: the operations of its matrix products, and how often each loop turns."""

    product_flops: dict[str, int] = field(default_factory=dict)  # by the operands' dtype
    iterations: list[int] = field(default_factory=list)  # of each loop, in order of the text


def counted(ttir: str, arguments: Mapping[str, object]) -> Work:
    """The work of program 0. ValueError where a loop's bounds are not arithmetic on the arguments."""
    values: dict[str, int] = {name: value for name, value in arguments.items() if isinstance(value, int)}
    work = Work()
    times = [1]  # of each block that is open
    for line in ttir.splitlines():
        text = line.split(" loc(")[0].strip()
        loop = LOOP.match(text)
        if loop:
            start, end, step = (_known(values, name) for name in loop.groups()[1:])
            values[loop[1]] = start
            turns = max(0, -(-(end - start) // step))
            work.iterations.append(turns)
            times.append(times[-1] * turns)
            continue
        if text.endswith("{"):
            times.append(times[-1])
        elif text.startswith("}"):
            times.pop()
            if text.endswith("{"):
                times.append(times[-1])
        dot = DOT.search(text)
        if dot:
            m, k, dtype, n = int(dot[1]), int(dot[2]), dot[3], int(dot[4])
            work.product_flops[dtype] = work.product_flops.get(dtype, 0) + 2 * m * n * k * times[-1]
        value = VALUE.match(text)
        if value and "tensor<" not in text:
            _evaluate(values, value[1], value[2], value[3])
    return work


def executions(branches: Sequence[tuple[int, int | None]], iterations: Sequence[int]) -> list[int]:
    """How often each instruction of machine code runs, from (address, target of a branch or None) of all of them.

    A branch back is a loop; the iterations are of Triton's loops, in order. ValueError where there are not as many.
    """
    loops = sorted((target, address) for address, target in branches if target is not None and target < address)
    if len(loops) < len(iterations):  # the compiler keeps no loop that turns once
        iterations = [turns for turns in iterations if turns != 1]
    if len(loops) != len(iterations):
        raise ValueError(f"the machine code has {len(loops)} loops and the kernel {len(iterations)}")
    counts = []
    for address, _ in branches:
        turns = [n for (first, last), n in zip(loops, iterations, strict=True) if first <= address <= last]
        counts.append(math.prod(turns))
    return counts


def _evaluate(values: dict[str, int], name: str, operation: str, rest: str) -> None:
    if operation == "tt.get_program_id":
        values[name] = 0
    elif operation == "arith.constant":
        number = re.match(r"(-?\d+) :", rest)
        if number:
            values[name] = int(number[1])
    else:
        operands = [values[operand] for operand in re.findall(r"%(\w+)", rest) if operand in values]
        if operation in BINARY and len(operands) == 2:
            values[name] = BINARY[operation](*operands)
        elif operation in ("arith.extsi", "arith.trunci") and operands:
            values[name] = operands[0]


def _known(values: Mapping[str, int], name: str) -> int:
    try:
        return values[name.removeprefix("%")]
    except KeyError:
        raise ValueError(f"the bound {name} of a loop is not arithmetic on the kernel's arguments") from None
