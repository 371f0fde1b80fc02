"""The figures of csrc's CUDA kernels, from what nvcc makes of them.

A call is a row of phases, each cut into tasks, and a grid-wide barrier stands between two phases: each phase counts as
a launch with a program for each task. What a warp issues is read from the machine code by its line numbers. The body
of every loop over elements is found by an operation that its source does once an iteration, whatever the unrolling;
how often it turns follows from the matrices. All else of a phase counts once a task, both sides of its branches too,
save what is for other dtypes, or for one task of a matrix alone.

Matrices are those of a contiguous weight, in float32, and the vectors move once.
"""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SOURCES = tuple(CSRC / name for name in ("cuda_common.cuh", "power_iteration.h", "power_iteration.cu", "backward.cu"))
Shape = tuple[int, int]  # rows, columns
Kinds = Counter[str]


class Instruction(NamedTuple):
    """A machine instruction, the lines of csrc that it is of, innermost first, and where a branch of it goes."""

    operation: str
    lines: tuple[int, ...]
    target: int | None


@dataclass(frozen=True)
class Loop:
    """A loop over elements: its text in the source, what is done once an iteration, turns of all warps of a matrix."""

    text: str
    once: str
    turns: Callable[[int, int], float]  # of rows and columns: the sum over tasks of the turns of one warp
    within: str = ""  # the text of the line that calls it, where several do


@dataclass(frozen=True)
class Phase:
    """One phase of a kernel. bytes: of every matrix that it is the first to touch or to write, in elements' size.

    again: bytes an element that it reads and an earlier phase has touched. since: touched from then on.
    """

    name: str
    source: str
    call: str  # the text of the line that runs a task
    tasks: Callable[[int, int], int]
    loops: tuple[Loop, ...]
    bytes: int
    again: int
    since: int
    never: str = ""  # a regular expression of lines that it does not get to, or in one task of a matrix alone


def constant(name: str) -> int:
    """A constexpr of the sources, as they have it."""
    for path in SOURCES:
        if found := re.search(rf"constexpr int {name} = (\d+);", path.read_text()):
            return int(found[1])
    raise ValueError(f"csrc has no line `constexpr int {name} = ...;`: benchmarks/predictions/cuda.py counts with it")


WARP, WARPS, STRIP_ROWS = constant("kWarp"), constant("kWarps"), constant("kStripRows")
THREADS, TASK_ELEMENTS, MOST_ROWS = WARP * WARPS, constant("kRowTaskElements"), constant("kMostRowsOfAWarp")


def row_tasks(rows: int, cols: int) -> int:
    """As cuda_common.cuh cuts a matrix by rows."""
    each = min(max(TASK_ELEMENTS // WARPS // cols, 1), MOST_ROWS)
    return -(-rows // (WARPS * each))


def strip_tasks(rows: int, cols: int) -> int:
    """As power_iteration.cu cuts a matrix by columns."""
    return -(-rows // STRIP_ROWS) * -(-cols // WARP)


def _each(elements: int) -> int:
    """Turns of a loop in which the block's threads share so many elements."""
    return -(-elements // THREADS)


def _by_warps(rows: int, cols: int) -> float:
    return rows / WARPS * -(-cols // WARP)


OTHER_DTYPES, STORE = "case Dtype::(bfloat16|float16)", r"\.store\(divisor\)"
DIVISOR, ELEMENTS = "sum += x * x;", "static_cast<Out>(weight[i] * factor)"
FORWARD = (
    Phase(
        "normalise, W^T u", "power_iteration.cu", "towards_right(m, own, given", strip_tasks,
        (
            Loop("sum += factors[row] * column[", "FFMA", lambda r, c: -(-c // WARP) * r / WARPS),
        ),
        bytes=4, again=0, since=0, never=rf"{STORE}|left\.(divisor\(eps|element\(first_row)",  # u comes normalised
    ),
    Phase(
        "normalise, W v", "power_iteration.cu", "towards_left(m, own, given", row_tasks,
        (
            Loop(DIVISOR, "DFMA", lambda r, c: row_tasks(r, c) * _each(c)),
            Loop("right.element(first_col", "STS", lambda r, c: row_tasks(r, c) * _each(c)),
            Loop("sum += line[col] * factors[col]", "FFMA", _by_warps),
        ),
        bytes=0, again=4, since=4, never=STORE,
    ),
    Phase(
        "normalise, W / sigma", "power_iteration.cu", "scale(table, m, index, own, given)", row_tasks,
        (
            Loop(DIVISOR, "DFMA", lambda r, c: row_tasks(r, c) * _each(r)),
            Loop("last.element(i, divisor)) * last.product(i)", "DFMA", lambda r, c: row_tasks(r, c) * _each(r)),
            Loop(ELEMENTS, "STG", lambda r, c: r * c / THREADS, within="multiply<float>("),
        ),
        bytes=4, again=4, since=4, never=rf"{STORE}|{OTHER_DTYPES}",
    ),
)  # fmt: skip
BACKWARD = (
    Phase(
        "gradients, <G, W>", "backward.cu", "inner_product(table, m, task);", row_tasks,
        (
            Loop("* m.weight[i];", "FFMA", lambda r, c: r * c / THREADS, within="partial_inner_product<float>("),
        ),
        bytes=8, again=0, since=0, never=OTHER_DTYPES,
    ),
    Phase(
        "gradients, dW", "backward.cu", "combine(table, m, index, task", row_tasks,
        (
            Loop("inner += parts[i];", "DADD", lambda r, c: row_tasks(r, c) * _each(row_tasks(r, c))),
            Loop("+ factor * m.right[col];", "STG", _by_warps, within="combine_rows<float>("),
        ),
        bytes=4, again=4, since=8, never=OTHER_DTYPES,
    ),
)  # fmt: skip


class Compiled(NamedTuple):
    """A kernel's machine code, and what a thread and a block need."""

    code: list[Instruction]
    registers: int
    shared: int


def nvcc() -> str | None:
    """The compiler, where there is one."""
    return shutil.which("nvcc")


def release(compiler: str) -> str:
    """The version of nvcc."""
    said = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", said)
    return found[1] if found else said.strip().splitlines()[-1]


def compiled(source: str, target: str) -> Compiled:
    """One of csrc's kernels for a target. RuntimeError where there is no nvcc, or it fails."""
    import triton

    if (compiler := nvcc()) is None:
        raise RuntimeError("there is no nvcc on PATH: install the CUDA toolkit")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder, "kernel.cubin"))
        command = [compiler, "-cubin", f"-arch={target}", "-O3", "-std=c++17", "-lineinfo", str(CSRC / source)]
        _output(*command, "-o", cubin)
        listing = _output(str(tools / "nvdisasm"), "-gi", "-c", cubin)
        usage = _output(str(tools / "cuobjdump"), "-res-usage", cubin)
    registers, shared = re.search(r"REG:(\d+)", usage), re.search(r"SHARED:(\d+)", usage)
    assert registers is not None, usage
    assert shared is not None, usage
    return Compiled(parsed(listing, source), int(registers[1]), int(shared[1]))


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr or done.stdout}")
    return done.stdout


def parsed(listing: str, source: str) -> list[Instruction]:
    """nvdisasm's listing with line numbers (-gi). Lines of other files than the source count as their caller's."""
    code: list[tuple[str, tuple[int, ...], str | None]] = []
    labels: dict[str, int] = {}
    lines: tuple[int, ...] = ()
    told: list[int] | None = None
    for text in listing.splitlines():
        if place := re.match(r'\s*//## File "(.*?)", line (\d+)', text):
            told = [] if told is None else told
            told += [int(place[2])] if place[1].endswith(f"/{source}") else []
        elif label := re.match(r"(\.L_x_\d+):", text):
            labels[label[1]] = len(code)
        elif one := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)(.*);", text):
            if told is not None:
                lines, told = tuple(told), None
            goes = re.search(r"`\((\.L_x_\d+)\)", one[2]) if one[1].startswith("BRA") else None
            code.append((one[1], lines, goes[1] if goes else None))
    return [Instruction(what, where, None if goes is None else labels[goes]) for what, where, goes in code]


def issued(code: Sequence[Instruction], phase: Phase, matrices: Sequence[Shape], kind: Callable[[str], str]) -> Kinds:
    """What one warp issues in all tasks of a phase together, by kind.

    ValueError where a loop is not to be found.
    """
    text = (CSRC / phase.source).read_text().splitlines()
    call = _line(text, phase.call)
    spans = sorted({(one.target, at) for at, one in enumerate(code) if one.target is not None and one.target <= at})
    innermost = [min((s for s in spans if s[0] <= at <= s[1]), key=lambda s: s[1] - s[0], default=None)
                 for at in range(len(code))]  # fmt: skip
    ours = [call in one.lines for one in code]
    tasks = sum(phase.tasks(*shape) for shape in matrices)
    total, inside = Counter[str](), set()
    never = {number for number, line in enumerate(text, 1) if phase.never and re.search(phase.never, line)}
    for loop in phase.loops:
        own = _line(text, loop.text)
        wanted = {call} | ({_line(text, loop.within)} if loop.within else set())
        marks = Counter(
            span for one, span in zip(code, innermost, strict=True)
            if span and one.operation.startswith(loop.once) and one.lines[:1] == (own,)
            and (one.lines == (own,) or wanted <= set(one.lines))  # the compiler does not always tell the callers
        )  # fmt: skip
        if not marks:
            raise ValueError(f"no loop in the machine code of {phase.source} does {loop.once} for `{loop.text}`")
        # An unrolled loop has more of them than the remainder before or after it.
        span, iterations = max(marks.items(), key=lambda item: (item[1], item[0][0] - item[0][1]))
        turns = sum(loop.turns(*shape) for shape in matrices) / iterations
        body = [at for at in range(span[0], span[1] + 1) if innermost[at] == span]
        inside |= set(body)
        for at in body:
            total[kind(code[at].operation)] += turns
    for at, one in enumerate(code):
        if ours[at] and at not in inside and not never & set(one.lines):
            total[kind(one.operation)] += tasks
    return total


def _line(text: Sequence[str], words: str) -> int:
    """The number of the one line that has the words, from 1."""
    found = [number for number, line in enumerate(text, 1) if words in line]
    if len(found) != 1:
        raise ValueError(f"csrc has {len(found)} lines with `{words}`, and benchmarks/predictions/cuda.py expects one")
    return found[0]
