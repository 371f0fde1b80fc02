"""vitgan export: a trained generator as ONNX, and as safetensors with a model card."""

import json
import logging
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import tyro

from vitgan.config import Config, to_dict
from vitgan.errors import InputError, VitganError
from vitgan.files import atomic_write, whole_file
from vitgan.training.checkpoint import GENERATOR, images_seen, latest_checkpoint, load_config, load_generator, run_of
from vitgan_kernels import use_backend


@dataclass(frozen=True)
class Export:
    """Write a trained generator (the averaged one) for use elsewhere.

    OUT/generator.onnx is checked against PyTorch in onnxruntime; OUT/model.safetensors has its settings beside it in
    config.json and a model card in README.md.
    """

    model: tyro.conf.Positional[Path]
    """Run directory, or one of its checkpoints."""
    out: Path = Path("export")
    """Folder for the files."""
    onnx: bool = True
    """Write the ONNX file; needs pip install 'vitgan[export]'."""


def main(arguments: list[str]) -> int:
    """Prints what was written, and how far the ONNX file's images are from PyTorch's."""
    options = tyro.cli(Export, args=arguments, prog="vitgan export")
    checkpoint = latest_checkpoint(options.model.resolve())
    export_safetensors(checkpoint, options.out)
    print(f"weights, settings and model card -> {options.out}")
    onnx = options.out / "generator.onnx"
    if options.onnx:
        onnx.unlink(missing_ok=True)  # an earlier export's, perhaps of another model
        error = export_onnx(checkpoint, onnx)
        print(f"ONNX, at most {error:.1e} from PyTorch in a pixel -> {onnx}")
    elif onnx.exists():
        print(f"{onnx} is an earlier export's and stays as it is")
    return 0


EXPORTED_FILES = ("README.md", "config.json", "model.safetensors", "generator.onnx")
CARD_START = "---\nlibrary_name: vitgan\n"
"""The start of a model card, by which an export is known."""
MAX_ONNX_ERROR = 1e-3
"""Largest difference of a pixel, in units of [-1, 1], between PyTorch and onnxruntime."""


def export_onnx(checkpoint: Path, path: Path) -> float:
    """Write the generator as ONNX: z (N, latent_dim), and if conditional labels int64 (N,), to images, N free.

    Returns the largest difference of a pixel to PyTorch's, on 3 random latents in onnxruntime.

    Raises:
        VitganError: the packages for it are missing, or the two differ by more than MAX_ONNX_ERROR.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (what torch.onnx needs; without it the error comes late and is long)
    except ImportError as error:
        raise VitganError(f"ONNX needs more packages ({error}): pip install 'vitgan[export]', or --no-onnx") from error
    generator = load_generator(checkpoint)
    labels = generator.random_labels(3, seed=0)
    inputs = {"z": generator.latents(3, seed=0)} | ({} if labels is None else {"labels": labels})
    batch = torch.export.Dim("batch", min=1)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with whole_file(path) as part:
        with use_backend("reference"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            torch.onnx.export(
                generator,
                tuple(inputs.values()),
                str(part),
                input_names=list(inputs),
                output_names=["images"],
                dynamo=True,
                external_data=False,
                verbose=False,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
            )
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        worst = 0.0
        for count in (3, 1):
            given = {name: tensor[:count].numpy() for name, tensor in inputs.items()}
            [images] = session.run(None, given)
            with torch.no_grad():
                expected = generator(*(tensor[:count] for tensor in inputs.values()))
            worst = max(worst, float((torch.from_numpy(images) - expected).abs().max()))
        if not worst <= MAX_ONNX_ERROR:
            raise VitganError(
                f"the exported images differ from PyTorch's by {worst:.1e}, more than {MAX_ONNX_ERROR}: not written"
            )
    return worst


def export_safetensors(checkpoint: Path, folder: Path) -> None:
    """Write model.safetensors, config.json and README.md, a model card for a model hub, into the folder.

    Raises:
        CheckpointError: the generator cannot be loaded.
        ValueError: the folder has files of these names that are no export's.
    """
    load_generator(checkpoint)  # what cannot be loaded is not handed on
    config = load_config(run_of(checkpoint))
    check_folder(folder)
    with atomic_write(folder / "README.md") as file:  # first: by it an export that was cut short is known
        file.write(_card(config, images_seen(checkpoint)).encode())
    with atomic_write(folder / "config.json") as file:
        file.write(json.dumps(to_dict(config), indent=2).encode())
    with atomic_write(folder / "model.safetensors") as file:
        file.write((checkpoint / GENERATOR).read_bytes())


def check_folder(folder: Path) -> None:
    """Raise ValueError where an export would replace files that are no earlier export's."""
    there = [name for name in EXPORTED_FILES if (folder / name).exists()]
    card = folder / "README.md"
    if there and not (card.is_file() and card.read_text(errors="replace").startswith(CARD_START)):
        raise InputError(f"{folder} has a {there[0]} that is no export's and would be replaced: choose another folder")


def _card(config: Config, images: int) -> str:
    by_class = f", by class ({', '.join(config.class_names)})" if config.class_names else ""
    try:
        release = version("vitgan")
    except PackageNotFoundError:
        release = "unknown"
    return f"""\
{CARD_START}tags: [gan, unconditional-image-generation, vitgan]
---

# {config.preset} on {Path(config.data).stem}

A generator of {config.image_size} x {config.image_size} images{by_class}: the moving average of the weights after
{images:,} images of training, with the vitgan package, version {release}
(after Lee et al., 2021, arXiv 2107.04589).

- generator: {config.generator_kind}, discriminator: {config.discriminator_kind}, loss: {config.loss.kind}
- data: {Path(config.data).stem}; batch {config.batch_size}; seed {config.seed}; all settings: config.json
- input: z, normal; output: {config.channels} channels in [-1, 1]
- it reproduces what its data shows, with the biases of that data, and has been evaluated for no use in particular

```python
import json

from safetensors.torch import load_file
from vitgan.config import Config, from_dict
from vitgan.models.build import build_generator

generator = build_generator(from_dict(Config, json.load(open("config.json"))))
generator.load_state_dict(load_file("model.safetensors"))
images = generator.eval().sample(16, seed=0)
```
"""
