"""`vitgan import-seed`: what it reads, and that it runs nothing of what it reads."""

import io
import os
import pickle
import re
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vitgan.cli import main
from vitgan.errors import CheckpointError
from vitgan.pickles import load_tensors


def generator_state() -> dict[str, Tensor]:
    names = ["pos_emb", "mlp.fc0.weight", "mlp.fc1.weight", "lff.ffm.conv.bias", "sln.ln.weight"]
    names += [f"transformer_encoder.blocks.{n}.{part}.weight" for n in range(3) for part in ("msa.qkv", "sln.beta")]
    names += ["siren.net.0.linear.weight", "siren.net.1.weight"]
    return {name: torch.randn(3, 2) for name in names}


def test_a_state_dict_becomes_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = generator_state()
    torch.save(state, tmp_path / "Generator.pth")
    assert main(["import-seed", str(tmp_path / "Generator.pth")]) == 0
    torch.testing.assert_close(load_file(tmp_path / "Generator.safetensors"), state)
    printed = capsys.readouterr().out
    assert "generator: 13 tensors, 78 numbers" in printed
    assert "no preset, seed-cifar10 included, can hold these weights" in printed


@pytest.fixture
def their_discriminator(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A whole module, with classes in modules that exist while it is saved and not when it is read."""
    module = types.ModuleType("models")

    class ViT(nn.Sequential):
        pass

    class PatchEmbedding(nn.Module):
        pass

    class spectral_norm(nn.Module):
        pass

    class ResidualAdd(nn.Module):
        pass

    for kind in (ViT, PatchEmbedding, spectral_norm, ResidualAdd):
        kind.__module__, kind.__qualname__ = "models", kind.__name__
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "models", module)
    wrapper: Any = spectral_norm()
    patches: Any = PatchEmbedding()
    wrapper.module = nn.Conv2d(3, 4, 2)
    weight = wrapper.module._parameters.pop("weight")
    assert weight is not None
    wrapper.module.weight_bar = nn.Parameter(weight.data)
    wrapper.module.weight_u = nn.Parameter(torch.randn(4), requires_grad=False)
    wrapper.w_init_sigma = torch.full((4, 3), 2.5).numpy()
    patches.projection = nn.Sequential(wrapper)
    patches.cls_token = nn.Parameter(torch.randn(1, 1, 4))
    patches.positions = nn.Parameter(torch.randn(4, 2).t())  # of another stride
    block: Any = ResidualAdd()
    wrapped: Any = spectral_norm()
    block.fn = nn.Sequential(nn.LayerNorm(4))
    wrapped.module = nn.Linear(4, 1)
    wrapped.module.weight_bar = wrapped.module._parameters.pop("weight")
    return ViT(patches, nn.Sequential(nn.Sequential(block)), nn.Sequential(nn.LayerNorm(4), wrapped))


def test_a_whole_module_is_read_without_its_classes(
    their_discriminator: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(their_discriminator, tmp_path / "d.pth")
    monkeypatch.delitem(sys.modules, "models")
    tensors = load_tensors(tmp_path / "d.pth")
    assert tensors.pop("0.projection.0.sigma_init") == 2.5
    torch.testing.assert_close(tensors, dict(their_discriminator.state_dict()))
    assert main(["import-seed", str(tmp_path / "d.pth"), "--out", str(tmp_path / "out" / "d.safetensors")]) == 0
    assert "0.projection.0.sigma_init" in load_file(tmp_path / "out" / "d.safetensors")


def write(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return path


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def nested(path: str) -> bytes:
    inside = pickle.dumps(Calls(os.system, f"touch {path}"))
    return pickle.dumps({"pos_emb": [Calls(pickle.loads, inside)]})


HOSTILE = {
    f"{os.system.__module__}.system": lambda path: pickle.dumps(Calls(os.system, f"touch {path}")),
    "builtins.eval": lambda path: pickle.dumps(Calls(eval, f"open({path!r}, 'w')")),
    "builtins.exec": lambda path: pickle.dumps(Calls(exec, f"open({path!r}, 'w')")),
    "builtins.getattr": lambda path: pickle.dumps(Calls(getattr, nn.Linear, "mro")),
    "_pickle.loads": nested,
    f"{open.__module__}.open": lambda path: pickle.dumps(Calls(open, path, "w")),
    "torch.serialization.load": lambda path: pickle.dumps(Calls(torch.load, path)),
    # a dotted name, to go from something known to something else
    "torch._utils._rebuild_tensor_v2.__globals__": lambda _: (
        b"\x80\x04\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93."
    ),
    "models.os.system": lambda path: b"cmodels\nos.system\n(V" + f"touch {path}".encode() + b"\ntR.",
    "torch.nn.modules.linear.sys": lambda _: b"ctorch.nn.modules.linear\nsys\n.",
    "collections.deque": lambda _: b"ccollections\ndeque\n.",
}


@pytest.mark.parametrize("named", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_nothing(named: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    file = write(tmp_path / "hostile.pth", HOSTILE[named](str(target)))
    with pytest.raises(CheckpointError, match=f"is refused: it names {named}"):
        load_tensors(file)
    assert not target.exists()


def test_a_known_class_runs_nothing_of_its_own(tmp_path: Path) -> None:
    # a Linear made with arguments that its own class would refuse, and given a state with a __setstate__ in it
    program = b"ctorch.nn.modules.linear\nLinear\n(Vabc\ntR}V__setstate__\nVx\nsb."
    with pytest.raises(CheckpointError, match="neither a module nor a state_dict"):
        load_tensors(write(tmp_path / "a.pth", program))


def test_storages_that_lie_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"pos_emb": torch.randn(4)}, buffer)
    for cut, message in ((8, "are announced"), (None, "refused|damaged")):
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "lies.pth", "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name.endswith("data/0") and cut is not None:
                    content = content[:cut]
                if name.endswith("data.pkl") and cut is None:
                    content = content.replace(b"K\x04\x85", b"K\xff\x85")
                new.writestr(name, content)
        with pytest.raises(CheckpointError, match=message):
            load_tensors(tmp_path / "lies.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.ones(2)}, "neither pos_emb nor 0.cls_token"),
        ({"pos_emb": torch.ones(2), "other": torch.ones(2)}, r"generator with tensors that .* has not: \['other'\]"),
        ([torch.ones(2)], "neither a module nor a state_dict"),
    ],
)
def test_other_checkpoints_are_named(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert main(["import-seed", str(tmp_path / "x.pth")]) == 1
    assert not (tmp_path / "x.safetensors").exists()
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("siren.net.0.linear.weight", r"it lacks siren\.net\.0\.\*: take"),
        ("mlp.fc0.weight", r"it lacks mlp\.fc0\.\*, mlp\.fc0\.weight: take"),
        (
            "transformer_encoder.blocks.1.msa.qkv.weight",
            r"it lacks transformer_encoder\.blocks\.1\.msa\.qkv\.weight: take",
        ),
    ],
)
def test_a_network_that_is_not_whole_is_refused(
    lost: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = generator_state()
    del state[lost]
    torch.save(state, tmp_path / "x.pth")
    assert main(["import-seed", str(tmp_path / "x.pth")]) == 1
    assert not (tmp_path / "x.safetensors").exists()
    assert re.search(f"x.pth is a generator that is not whole, {message}", capsys.readouterr().err)


def test_an_output_that_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(generator_state(), tmp_path / "x.pth")
    assert main(["import-seed", str(tmp_path / "x.pth"), "--out", str(tmp_path)]) == 1
    assert f"--out {tmp_path} is a folder: give the name of the file" in capsys.readouterr().err


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"a file of torch\.save \(1\.6 or later\) is needed"):
        load_tensors(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"missing\.pth does not exist: give a file of torch\.save"):
        load_tensors(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="is a folder: give a file"):
        load_tensors(tmp_path)
