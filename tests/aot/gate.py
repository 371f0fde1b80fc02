"""The ahead-of-time gate: every shipped kernel compiled for real GPUs without one.

    python -m tests.aot.gate [--all] [--target sm_90] [NAME ...]

Prints a table of registers, spills, shared memory and instructions, and exits with status 1 if a kernel spills
registers, needs more shared memory than a block has, or does not use the tensor cores where it should. Without --all,
only the cases marked quick. NAME picks the cases whose name contains it.
"""

import argparse
import importlib
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

os.environ.pop("TRITON_INTERPRET", None)

from tests.aot.compiler import TARGETS, Case, Compiled, compiled, complaints, recorded

# The targets of every run. Not gfx1100, which is compiled for on demand: tiles for AMD are chosen for warps of 64, and
# there, where they have 32 threads, half of the kernels spill.
SHIPPED_FOR = tuple(target for target in TARGETS if target != "gfx1100")
OPERATORS = ("l2_attention", "modulated_siren")
COLUMNS = (
    f"{'case':<44} {'kernel':<28} {'target':<7} {'registers':>9} {'spills':>6} {'shared':>7} {'tensor':>6} {'all':>6}"
)
Row = tuple[str, Compiled | None, list[str]]


def cases(operator: str) -> list[Case]:
    """The cases of an operator: `tests/aot/<operator>.py` has a function `cases`."""
    return importlib.import_module(f"tests.aot.{operator}").cases()


def check(operator: str, index: int, target: str) -> list[Row]:
    """Compile what one case launches for one target."""
    case = cases(operator)[index]
    rows: list[Row] = []
    for launch in recorded(case, target):
        name = launch.kernel.__name__
        try:
            result = compiled(launch, target)
        except Exception as error:
            rows.append((name, None, [f"does not compile: {type(error).__name__}: {str(error)[:300]}"]))
        else:
            rows.append((name, result, complaints(result, target, case.tensor_cores)))
    return rows


def _figures(result: Compiled) -> str:
    memory = f"{result.registers:>9} {result.spills:>6} {result.shared:>7}"
    return f"{memory} {result.tensor_instructions:>6} {result.instructions:>6}"


def main(arguments: list[str] | None = None) -> int:
    """Run the gate; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.aot.gate", description="compile every kernel for real GPUs")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only cases whose name contains one of these")
    parser.add_argument("--all", action="store_true", help="every shipped configuration, not only the quick cases")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this target; may be given again")
    options = parser.parse_args(arguments)
    jobs = [
        (operator, index, target, case.name)
        for operator in OPERATORS
        if importlib.util.find_spec(f"tests.aot.{operator}") is not None
        for index, case in enumerate(cases(operator))
        if (case.quick or options.all or options.names)
        and (not options.names or any(name in f"{operator} {case.name}" for name in options.names))
        for target in options.target or SHIPPED_FOR
    ]
    if not jobs:
        parser.error("no case has such a name")
    print(COLUMNS)
    failures = compiled_kernels = 0
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        results = pool.map(check, *zip(*(job[:3] for job in jobs), strict=True))
        for (operator, _, target, name), rows in zip(jobs, results, strict=True):
            for kernel, result, wrong in rows or [("", None, ["launches no kernel"])]:
                compiled_kernels += 1
                failures += bool(wrong)
                figures = "" if result is None else _figures(result)
                print(f"{f'{operator} {name}':<44} {kernel:<28} {target:<7} {figures}  {'; '.join(wrong)}", flush=True)
    print(f"{compiled_kernels} kernels compiled, {failures} with something wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
