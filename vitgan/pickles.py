"""Reads files of torch.save without running anything that is in them.

A pickle is a program: it names functions and calls them. Here a name either stands in one of the lists below or is
refused, and even then nothing of that name is looked up: classes of modules become inert records, and tensors are made
by a function of this file.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitgan.errors import CheckpointError

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
ORIGINAL_CLASSES = {
    *("ClassificationHead", "ConLinear", "DiscriminatorTransformerEncoder", "DiscriminatorTransformerEncoderBlock"),
    *("FeedForwardBlock", "FullyConnectedLayer", "GeneratorTransformerEncoder", "GeneratorTransformerEncoderBlock"),
    *("GeneratorViT", "LFF", "MappingNetwork", "ModulatedLinear", "MultiHeadAttention", "PatchEmbedding"),
    *("ResLinear", "ResidualAdd", "SLN", "SinActivation", "SineLayer", "Siren", "ViT", "spectral_norm"),
}
ORIGINAL_MODULES = ("models", "utils", "__main__")
TORCH_CLASSES = {
    *("activation.GELU", "activation.LeakyReLU", "activation.ReLU", "container.ModuleList", "container.Sequential"),
    *("conv.Conv2d", "dropout.Dropout", "linear.Linear", "normalization.LayerNorm"),
}
NUMPY = {"_reconstruct", "scalar"}


class Record:
    """What a pickled object is read as: its attributes, and nothing that could run."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state_dict, or of a whole module of ViTGAN-pytorch, by name, from a file of torch.save.

    Of a whole discriminator, `<layer>.sigma_init` is there too: the norm that each matrix is scaled to.

    Raises:
        CheckpointError: it is no such file, it is damaged, or its pickle names something that is not expected.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}: give a file of torch.save")
    try:
        with zipfile.ZipFile(path) as archive:
            content = _read(archive)
            tensors = _of_module(content) if isinstance(content, Record) else content
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read: a file of torch.save (1.6 or later) is needed ({error})"
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: {error}") from error
    except Exception as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path} holds neither a module nor a state_dict")
    return {str(name): tensor.contiguous() for name, tensor in tensors.items()}


def _read(archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    program = next((name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if program is None:
        raise zipfile.BadZipFile("it has no data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise zipfile.BadZipFile("it is compressed, as torch.save never does")
    with archive.open(program) as file:
        return _Unpickler(file, archive, program.partition("/")[0]).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _fresh(_tensor)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _fresh(_parameter)
        if module in ("builtins", "__builtin__") and name == "set":
            return _fresh(_set)
        if (module, name) == ("_codecs", "encode"):
            return _fresh(_bytes)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in NUMPY:
            return _fresh(_record)
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")) or _is_module_class(module, name):
            return type(name, (Record,), {})  # a class of its own each time: nothing outlives the load
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint of ViTGAN-pytorch needs")

    def persistent_load(self, key: Any) -> Tensor:
        kind, storage, name, _, count = key
        if kind != "storage" or storage not in STORAGES or not str(name).isalnum():
            raise pickle.UnpicklingError(f"it asks for {key!r}, which is no storage of a tensor")
        content = bytearray(self.archive.read(f"{self.folder}/data/{name}"))
        values = (
            torch.frombuffer(content, dtype=STORAGES[storage]) if content else torch.empty(0, dtype=STORAGES[storage])
        )
        if len(values) != count:
            raise pickle.UnpicklingError(f"storage {name} has {len(values)} numbers where {count} are announced")
        return values


def _is_module_class(module: str, name: str) -> bool:
    if module.startswith("torch.nn.modules."):
        return f"{module.removeprefix('torch.nn.modules.')}.{name}" in TORCH_CLASSES
    if (module, name) == ("einops.layers.torch", "Rearrange"):
        return True
    return module.partition(".")[0] in ORIGINAL_MODULES and name in ORIGINAL_CLASSES


def _fresh(function: Any) -> Any:
    """A pickle can set attributes on what it was given, so it is given something that nobody else has."""
    return lambda *arguments: function(*arguments)


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor is made of something that is no storage")
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError(f"a tensor of {tuple(size)} is larger than its storage")
    return storage.as_strided(size, stride, offset).clone()  # refuses what lies outside of the storage


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _set(values: Any = ()) -> set[Any]:
    return set(values)


def _bytes(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


def _record(*arguments: Any) -> Record:
    return Record(*arguments)


def _of_module(module: Record, prefix: str = "") -> dict[str, Tensor]:
    state: dict[str, Any] = getattr(module, "state", {})
    tensors = {}
    for kind in ("_parameters", "_buffers"):
        for name, tensor in state.get(kind, {}).items():
            if isinstance(tensor, Tensor):
                tensors[prefix + name] = tensor
    sigma = state.get("w_init_sigma")
    if isinstance(sigma, Record):  # an array in the size of the weight, the same number everywhere
        tensors[f"{prefix}sigma_init"] = torch.from_numpy(
            np.frombuffer(sigma.state[4], "<f4", count=1).copy()
        ).squeeze()
    for name, part in state.get("_modules", {}).items():
        if isinstance(part, Record):
            tensors |= _of_module(part, f"{prefix}{name}.")
    return tensors
