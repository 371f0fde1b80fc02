"""The figures of compiled kernels that predictions are made from, kept in figures.json.

    python -m benchmarks.predictions --compile

compiles what the operators launch at the shapes of cases.py, which takes a minute; everything else reads the file. It
carries digests of the sources, so that figures of other kernels than the present ones are not used unnoticed. Where
there is no nvcc, the figures of the CUDA kernels stay what they were.
"""

import ast
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.predictions import cuda

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILE = HERE / "figures.json"
KERNELS = ROOT / "kernels" / "vitgan_kernels"
SOURCES = (
    *(KERNELS / "l2_attention" / name for name in ("launch.py", "layout.py", "tiles.py")),
    *sorted((KERNELS / "l2_attention").glob("triton_*.py")),
    *(KERNELS / "modulated_siren" / n for n in ("launch.py", "plan.py", "sine.py", "stack.py", "triton_kernels.py")),
    HERE / "loops.py",
)
COMMON = (HERE / "cases.py", HERE / "figures.py")


@dataclass(frozen=True)
class Figures:
    """One kernel of a case, compiled for a target: what it needs and what one program of it does."""

    kernel: str
    launches: int
    programs: int  # of one launch
    warps: int  # of one program
    registers: int  # of a thread
    shared: int  # bytes of a program
    bytes: int  # of one launch: every tensor it is given, once
    again: int  # bytes that it reads and an earlier kernel of the case has touched
    since: int  # bytes that were touched since then, these among them
    flops: dict[str, int]  # that the tensor cores do for one program, by the operands' dtype
    instructions: dict[str, int]  # that one warp issues, by kind: tensor, fp32, double, special, memory, other


@dataclass(frozen=True)
class CaseFigures:
    """All launches of a case on a target."""

    suite: str
    shape: dict[str, int]
    dtype: str
    measures: str
    target: str
    kernels: list[Figures]


def digests() -> dict[str, str]:
    """Of the code that decides what is launched, of Triton and of CUDA; comments and docstrings do not count."""
    found = {}
    for name, paths in (("triton", (*SOURCES, *COMMON)), ("cuda", (*cuda.SOURCES, HERE / "cuda.py", *COMMON))):
        code = [_python(path) if path.suffix == ".py" else _without_comments(path.read_text()) for path in paths]
        found[name] = hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]
    return found


def stale() -> list[str]:
    """Which figures of figures.json are of other kernels than the present ones: "triton", "cuda"."""
    kept = json.loads(FILE.read_text())["sources"]
    return [name for name, digest in digests().items() if kept.get(name) != digest]


def why_stale() -> str | None:
    """Which figures are of other kernels and what to do, or None where none are."""
    if not (old := stale()):
        return None
    first = "put the CUDA toolkit's nvcc on PATH, and " if "cuda" in old and cuda.nvcc() is None else ""
    return (
        f"benchmarks/predictions/figures.json is older than the kernels ({', '.join(old)}): {first}run "
        "python -m benchmarks.predictions --compile"
    )


def load() -> list[CaseFigures]:
    """The figures of every case and target. RuntimeError where some are of other kernels."""
    if why := why_stale():
        raise RuntimeError(why)
    return [
        CaseFigures(**case | {"kernels": [Figures(**kernel) for kernel in case["kernels"]]})
        for case in json.loads(FILE.read_text())["cases"]
    ]


def write(say: Callable[[str], None] = print) -> None:
    """Compile every case for every GPU's target and write the file."""
    import triton

    from benchmarks.predictions.cases import CASES
    from benchmarks.predictions.devices import GPUS

    targets = list(dict.fromkeys(gpu.target for gpu in GPUS))
    found = []
    for case in CASES:
        for target in targets:
            say(f"{case.suite} {case.shape} {case.measures} {target}")
            kernels = _kernels(case.run, target)
            found.append(CaseFigures(case.suite, case.shape, case.dtype, case.measures, target, kernels))
    sources, kept = digests(), json.loads(FILE.read_text())
    if compiler := cuda.nvcc():
        say("csrc")
        found += _spectral_norm(targets)
        rows = [asdict(case) for case in found]
        nvcc = cuda.release(compiler)
    else:
        say("csrc: there is no nvcc on PATH, so the figures of the CUDA kernels stay what they were")
        rows = [asdict(case) for case in found] + [case for case in kept["cases"] if case["suite"] == "spectral_norm"]
        sources["cuda"], nvcc = kept["sources"]["cuda"], kept["nvcc"]
    figures = {"sources": sources, "triton": triton.__version__, "nvcc": nvcc, "cases": rows}
    FILE.write_text(json.dumps(figures, indent=1) + "\n")


def _spectral_norm(targets: Sequence[str]) -> list[CaseFigures]:
    from benchmarks.matrices import matrices
    from benchmarks.predictions.cases import SPECTRAL_NORM

    found = []
    for target in targets:
        code = {phase.source: cuda.compiled(phase.source, target) for phase in (*cuda.FORWARD, *cuda.BACKWARD)}
        for preset, measures in SPECTRAL_NORM:
            sizes = matrices(preset)
            phases = cuda.FORWARD + (cuda.BACKWARD if measures == "forward_backward" else ())
            kernels = [_phase_figures(phase, code[phase.source], sizes) for phase in phases]
            shape = {"matrices": len(sizes), "elements": sum(rows * cols for rows, cols in sizes)}
            found.append(CaseFigures("spectral_norm", shape, "float32", measures, target, kernels))
    return found


def _phase_figures(phase: cuda.Phase, compiled: cuda.Compiled, sizes: Sequence[cuda.Shape]) -> Figures:
    elements, tasks = sum(rows * cols for rows, cols in sizes), sum(phase.tasks(*size) for size in sizes)
    issued = cuda.issued(compiled.code, phase, sizes, _kind)
    return Figures(
        kernel=phase.name,
        launches=1,
        programs=tasks,
        warps=cuda.WARPS,
        registers=compiled.registers,
        shared=compiled.shared,
        bytes=phase.bytes * elements,
        again=phase.again * elements,
        since=phase.since * elements,
        flops={},
        instructions={kind: round(count / tasks) for kind, count in sorted(issued.items())},
    )


def _kernels(run: Callable[[], Any], target: str) -> list[Figures]:
    from tests.aot.compiler import Case, recorded

    counts: Counter[str] = Counter()
    first: dict[str, Any] = {}
    for launch in recorded(Case("", run), target):
        shown = {n: (tuple(a.shape), str(a.dtype)) if hasattr(a, "shape") else a for n, a in launch.arguments.items()}
        key = f"{launch.kernel.__name__} {launch.programs} {launch.options} {shown}"
        counts[key] += 1
        first.setdefault(key, launch)
    return [_figures(launch, counts[key], target) for key, launch in first.items()]


def _figures(launch: Any, launches: int, target: str) -> Figures:
    from benchmarks.predictions.loops import counted, executions
    from tests.aot.compiler import built, disassembled

    kernel = built(launch, target)
    instructions, usage = disassembled(kernel)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    warps = kernel.metadata.num_warps
    work = counted(kernel.asm["ttir"], launch.arguments)
    counts = executions([(one.address, one.target) for one in instructions], work.iterations)
    kinds: Counter[str] = Counter()
    products = 0.0
    for one, count in zip(instructions, counts, strict=True):
        kinds[_kind(one.operation)] += count
        products += warps * count * _product_flops(one.operation)
    name, wanted = launch.kernel.__name__, sum(work.product_flops.values())
    if not 0.99 < products / wanted <= warps:  # where a tile is too small to share out, warps repeat each other's work
        raise ValueError(f"{name} for {target}: {products:g} operations by its machine code, {wanted} by its products")
    tensors = {id(a): a for a in launch.arguments.values() if hasattr(a, "element_size")}
    return Figures(
        kernel=name,
        launches=launches,
        programs=launch.programs,
        warps=warps,
        registers=int(registers[1]),
        shared=kernel.metadata.shared,
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        again=0,
        since=0,
        flops={dtype: round(flops * products / wanted) for dtype, flops in work.product_flops.items()},
        instructions=dict(sorted(kinds.items())),
    )


def _product_flops(operation: str) -> float:
    """Operations of a tensor-core instruction, as one warp's share."""
    group = re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", operation)
    if group:
        return 2 * math.prod(map(int, group.groups())) / 4  # four warps together
    warp = re.match(r"HMMA\.(16)(8)(\d+)", operation)
    return 2 * math.prod(map(int, warp.groups())) if warp else 0


def _kind(operation: str) -> str:
    if operation.startswith(("HMMA", "HGMMA")):
        return "tensor"
    if operation.startswith("MUFU"):
        return "special"
    if operation.startswith(("FADD", "FMUL", "FFMA")):
        return "fp32"
    if operation.startswith(("DADD", "DMUL", "DFMA", "DSETP")):
        return "double"
    return "memory" if operation.startswith(("LD", "ST", "ATOM", "RED", "UTMA")) else "other"


def _python(path: Path) -> str:
    return repr(_tree(_without_docstrings(ast.parse(path.read_text()))))


def _tree(node: object) -> object:
    """A syntax tree without its empty fields, of which every version of Python has others."""
    if isinstance(node, ast.AST):
        fields = [(name, _tree(value)) for name, value in ast.iter_fields(node) if value not in (None, [])]
        return type(node).__name__, *fields
    return list(map(_tree, node)) if isinstance(node, list) else node


def _without_comments(text: str) -> str:
    return " ".join(re.sub(r"//.*", "", text).split())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def _is_text(line: object) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
