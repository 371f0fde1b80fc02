"""What the facts that `doctor` has gathered mean: what is broken here, what could be better, and what to do."""

import re
from dataclasses import dataclass
from typing import Any

from vitgan_kernels.backends import BACKENDS, ENVIRONMENT_VARIABLE

Facts = dict[str, Any]
NEWEST_TESTED = {"python": "3.14", "torch": "2.15", "triton": "3.9"}
ORDERS = ("values", "first derivative", "second derivative")


@dataclass(frozen=True)
class Finding:
    """Something to know. Where it is broken, something that is promised does not work; otherwise it is advice."""

    what: str
    what_to_do: str
    broken: bool


def diagnose(facts: Facts) -> list[Finding]:
    """What the facts mean, what is broken first."""
    found = [
        *_about_the_extension(facts),
        *_about_gpus(facts),
        *_about_triton(facts),
        *_about_the_choice(facts),
        *_about_checks(facts),
        *_about_versions(facts),
    ]
    return sorted(found, key=lambda finding: not finding.broken)


def _about_the_extension(facts: Facts) -> list[Finding]:
    extension = facts["extension"]
    if extension["loads"]:
        return []
    if extension["built"]:
        rebuild = "install vitgan again from its source, on this machine"
        return [Finding(f"the compiled extension is there, but fails: {extension['about']}", rebuild, True)]
    build = "install a C++ compiler, then vitgan again from its source; `pip install -v` shows what the build found"
    return [
        Finding(
            "the compiled extension is not built: on a CPU every operator runs in plain PyTorch, slower", build, False
        )
    ]


def _about_gpus(facts: Facts) -> list[Finding]:
    gpu, extension = facts["gpu"], facts["extension"]
    found = []
    if gpu["problem"]:
        what = f"PyTorch cannot compute on this machine's GPU, and the checks ran on the CPU: {gpu['problem']}"
        architectures = ", ".join(device["architecture"] for device in gpu["devices"])
        found.append(Finding(what, f"install a build of PyTorch for {architectures} and this driver", True))
    if extension["loads"] or not extension["built"]:  # otherwise the whole of it is a finding already
        found += [
            Finding(f"spectral_norm has no CUDA kernels for {device}: {about}", _cuda_remedy(facts), True)
            for device, (able, about) in extension["devices"].items()
            if not able
        ]
    if gpu["seen by the driver"] and not gpu["devices"]:
        names = ", ".join(gpu["seen by the driver"])
        if gpu["PyTorch built for"] is None:
            what = f"this machine has a GPU ({names}), and this PyTorch is a build for the CPU"
            found.append(Finding(what, "install a build of PyTorch for CUDA: https://pytorch.org", False))
        else:
            what = f"this PyTorch, built for {gpu['PyTorch built for']}, cannot use this machine's GPU ({names})"
            update = f"update the driver ({gpu['driver']}), or look at CUDA_VISIBLE_DEVICES"
            found.append(Finding(what, update, True))
    return found


def _cuda_remedy(facts: Facts) -> str:
    if facts["versions"]["nvcc"] is None:
        return "install nvcc (the CUDA toolkit), or name it in NVCC; then install vitgan again from its source"
    architectures = sorted({d["architecture"].removeprefix("sm_") for d in facts["gpu"]["devices"]})
    return f"install vitgan again from its source, with VITGAN_CUDA_ARCHS='{' '.join(architectures)}'"


def _about_triton(facts: Facts) -> list[Finding]:
    version, needed = facts["versions"]["triton"], facts["triton"]["needed"]
    on_gpu = bool(facts["gpu"]["devices"])
    install = f"pip install 'triton=={needed}.*'" if needed else "pip install 'vitgan[kernels]'"
    found = []
    if facts["triton"]["problem"]:
        found.append(Finding(f"Triton cannot be imported: {facts['triton']['problem']}", install, True))
    elif version is None:
        if on_gpu:
            found.append(Finding("there is a GPU and no Triton: L2 attention and SIREN are not fused", install, True))
    elif needed and not f"{version.partition('+')[0]}.".startswith(f"{needed}."):
        torch_version = facts["versions"]["torch"]
        found.append(Finding(f"Triton {version} does not go with torch {torch_version}", install, on_gpu))
    if on_gpu and facts["triton"]["interpreted"]:
        what = "TRITON_INTERPRET is set: on this GPU, every Triton kernel runs in the interpreter, very slowly"
        found.append(Finding(what, "unset TRITON_INTERPRET", False))
    return found


def _about_the_choice(facts: Facts) -> list[Finding]:
    forced = facts["forced backend"]
    if forced not in BACKENDS:
        what = f"{ENVIRONMENT_VARIABLE}={forced} is set, and there is no backend of that name"
        return [Finding(what, f"unset {ENVIRONMENT_VARIABLE}, or set it to one of {', '.join(BACKENDS)}", True)]
    unable = [name for name, operator in facts["operators"].items() if operator["backend"] is None]
    if not unable:
        return []
    what = f"{ENVIRONMENT_VARIABLE}={forced} is set, and cannot run a call here of {', '.join(unable)}"
    return [Finding(what, f"unset {ENVIRONMENT_VARIABLE}, or set it to auto", True)]


def _about_checks(facts: Facts) -> list[Finding]:
    found = []
    for check in facts["checks"]:
        if not check["passed"]:
            order = ORDERS[check["derivative"]]
            what = f"{check['operator']} on {check['backend']} in {check['dtype']}, {order}: {check['problem']}"
            others = "use another backend (vitgan_kernels.use_backend) and report this with the output of --json"
            found.append(Finding(what, others, True))
    return found


def _about_versions(facts: Facts) -> list[Finding]:
    found = []
    for name, newest in NEWEST_TESTED.items():
        version = facts["versions"][name]
        if version is not None and _release(version) > _release(newest):
            what = f"{name} {version} is newer than any that vitgan was tested with: {newest} is the newest"
            found.append(Finding(what, "run the tests (./run test), or look for a newer vitgan", False))
    return found


def _release(version: str) -> tuple[int, ...]:
    """Its first two numbers: "2.15.0a0+git" -> (2, 15)."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:2])
