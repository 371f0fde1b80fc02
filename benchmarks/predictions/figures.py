"""The figures of compiled kernels that predictions are made from, kept in figures.json.

    python -m benchmarks.predictions --compile

compiles what the operators launch at the shapes below, which takes a minute; everything else reads the file. It
carries a digest of the sources, so that figures of other kernels than the present ones are not used unnoticed.
"""

import ast
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILE = HERE / "figures.json"
KERNELS = ROOT / "kernels" / "vitgan_kernels"
SOURCES = (
    *(KERNELS / "l2_attention" / name for name in ("launch.py", "layout.py", "tiles.py")),
    *sorted((KERNELS / "l2_attention").glob("triton_*.py")),
    *(KERNELS / "modulated_siren" / n for n in ("launch.py", "plan.py", "sine.py", "stack.py", "triton_kernels.py")),
    HERE / "cases.py",
    HERE / "figures.py",
    HERE / "loops.py",
)


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
    flops: dict[str, int]  # that the tensor cores do for one program, by the operands' dtype
    instructions: dict[str, int]  # that one warp issues, by kind: tensor, fp32, special, memory, other


@dataclass(frozen=True)
class CaseFigures:
    """All launches of a case on a target."""

    suite: str
    shape: dict[str, int]
    dtype: str
    measures: str
    target: str
    kernels: list[Figures]


def digest() -> str:
    """Of the code that decides what is launched; comments and docstrings do not count."""
    found = hashlib.sha256()
    for path in SOURCES:
        found.update(ast.dump(_without_docstrings(ast.parse(path.read_text()))).encode())
    return found.hexdigest()[:16]


def stale() -> bool:
    """Whether figures.json is of other kernels than the present ones."""
    return bool(json.loads(FILE.read_text())["sources"] != digest())


def load() -> list[CaseFigures]:
    """The figures of every case and target. RuntimeError where they are of other kernels."""
    if stale():
        raise RuntimeError("benchmarks/predictions/figures.json is older than the kernels: "
                           "run python -m benchmarks.predictions --compile")  # fmt: skip
    return [
        CaseFigures(**case | {"kernels": [Figures(**kernel) for kernel in case["kernels"]]})
        for case in json.loads(FILE.read_text())["cases"]
    ]


def write(say: Callable[[str], None] = print) -> None:
    """Compile every case for every GPU's target and write the file."""
    import triton

    from benchmarks.predictions.cases import CASES
    from benchmarks.predictions.devices import GPUS

    found = []
    for case in CASES:
        for target in dict.fromkeys(gpu.target for gpu in GPUS):
            say(f"{case.suite} {case.shape} {case.measures} {target}")
            kernels = _kernels(case.run, target)
            found.append(asdict(CaseFigures(case.suite, case.shape, case.dtype, case.measures, target, kernels)))
    FILE.write_text(json.dumps({"sources": digest(), "triton": triton.__version__, "cases": found}, indent=1) + "\n")


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
    return "memory" if operation.startswith(("LD", "ST", "ATOM", "RED", "UTMA")) else "other"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def _is_text(line: object) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
