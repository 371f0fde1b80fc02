"""The compiled extension: what it says of itself, what its binding refuses, and what happens where it is missing."""

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import explain, native_support, spectral_norm
from vitgan_kernels.spectral_norm import native

MODULE = "vitgan_kernels._native"


@pytest.fixture(autouse=True)
def _built(request: pytest.FixtureRequest) -> None:
    native.device_available.cache_clear()
    ok, why = native.available()
    if not ok and "without_extension" not in request.fixturenames:
        assert os.environ.get("VITGAN_REQUIRE_NATIVE") != "1", why
        pytest.skip(why)


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)


class Call:
    """A legal call of the binding, to be made illegal."""

    def __init__(self) -> None:
        self.weight, self.u, self.v = torch.randn(6, 5), torch.randn(6), torch.randn(5)
        self.scaled, self.sigma = torch.empty(6, 5), torch.empty(1)
        self.row = {"rows": 6, "cols": 5, "transposed": False, "weight": self.weight, "u": self.u, "v": self.v}
        self.row |= {"u_copy": self.u, "v_copy": self.v, "scaled": self.scaled}
        self.rest: dict[str, Any] = {
            "sigma_init": 0,
            "sigma": self.sigma,
            "n_iterations": 1,
            "eps": 1e-12,
            "threads": 1,
        }

    def run(self) -> None:
        def plain(value: Any) -> Any:
            return value.data_ptr() if isinstance(value, Tensor) else value

        function = importlib.import_module(MODULE).spectral_norm_float32
        row = tuple(plain(value) for value in self.row.values())
        function([row], **{name: plain(value) for name, value in self.rest.items()})


def test_binding_takes_what_is_right() -> None:
    call = Call()
    call.run()
    torch.testing.assert_close(call.sigma[0], call.u @ call.weight @ call.v)
    torch.testing.assert_close(call.scaled, call.weight / call.sigma)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.row.update(rows=0), r"weights\[0\] has 0 rows and 5 columns; at least one of each is needed"),
        (lambda c: c.row.update(u=0), r"u\[0\] is a null address; give the tensor's data_ptr"),
        (
            lambda c: c.row.update(v=c.v.data_ptr() + 1),
            r"v\[0\] is at address \d+, which is not a multiple of 4; clone",
        ),
        (
            lambda c: c.row.update(scaled=c.weight),
            r"(weights|scaled)\[0\] and (weights|scaled)\[0\] share memory; clone",
        ),
        (lambda c: c.row.update(v=c.u, v_copy=c.u), r"[uv]\[0\] and [uv]\[0\] share memory; clone one of them"),
        (lambda c: c.row.update(v=c.weight[2], v_copy=c.weight[2]), r"weights\[0\] and v\[0\] share memory"),
        (lambda c: c.row.update(u_copy=c.v), "share memory"),
        (lambda c: c.rest.update(sigma=c.scaled[5, 4:]), r"scaled\[0\] and sigma share memory"),
        (lambda c: c.rest.update(sigma=0), "sigma is a null address"),
        (lambda c: c.rest.update(n_iterations=-1), "n_iterations is -1; it must be at least 0"),
        (lambda c: c.rest.update(eps=-1.0), "eps is -1.000000; it must be zero or more"),
        (lambda c: c.rest.update(eps=float("nan")), "eps is nan; it must be zero or more"),
    ],
)
def test_binding_refuses_what_cannot_be_right_and_touches_nothing(change: Callable[[Call], None], message: str) -> None:
    call = Call()
    change(call)
    before = [call.weight.clone(), call.u.clone(), call.v.clone()]
    with pytest.raises(ValueError, match=message):
        call.run()
    torch.testing.assert_close([call.weight, call.u, call.v], before, rtol=0, atol=0)


def test_other_threads_run_meanwhile() -> None:
    call = Call()
    call.rest["n_iterations"] = 2_000_000
    thread = threading.Thread(target=call.run)
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 10


def test_build_info_says_how_it_was_built() -> None:
    info = native_support.build_info()
    assert info["standard"] == "c++17"
    assert "-march" not in info["flags"], "a wheel must run on other machines than the one that built it"
    assert info["compiler"].split()[0] in ("gcc", "clang")
    ok, why = native.available()
    assert ok
    assert info["compiler"] in why


@pytest.mark.usefixtures("without_extension")
def test_a_missing_extension_says_what_to_do() -> None:
    ok, why = native.available()
    assert not ok
    assert "\n" not in why
    for word in ("is not built", "C++ compiler", "apt install g++ python3-dev", "install vitgan again"):
        assert word in why
    weight, u, v = torch.ones(2, 3), torch.ones(2), torch.ones(3)
    with pytest.raises(RuntimeError, match="is not built"):
        torch.ops.vitgan_kernels.spectral_norm_([weight], [u], [v], None, 1, 1e-12, None)
    assert "cpp       cannot: vitgan_kernels._native is not built" in explain("spectral_norm", [weight], [u], [v])
    spectral_norm([weight], [u], [v])
    assert not native.device_available(0)[0]
    with pytest.raises(RuntimeError, match="is not built"):
        native_support.build_info()


def test_an_extension_that_cannot_be_loaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libstdc++.so.6: version not found")

    monkeypatch.setattr(importlib, "import_module", fail)
    ok, why = native.available()
    assert not ok
    assert "cannot be loaded (libstdc++.so.6: version not found): install vitgan again on this machine" in why
