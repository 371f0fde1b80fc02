"""vitgan export."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from vitgan.export import export_onnx, export_safetensors
from vitgan.training.checkpoint import latest_checkpoint


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
