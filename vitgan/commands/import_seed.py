"""vitgan import-seed."""

import re
from dataclasses import dataclass
from pathlib import Path

import tyro
from safetensors.torch import save
from torch import Tensor

from vitgan.atomic import atomic_write
from vitgan.errors import CheckpointError
from vitgan.pickles import load_tensors

GENERATOR = (
    r"pos_emb|mlp\.fc\d+\.(weight|bias)|lff\.ffm\.conv\.(weight|bias)|"
    r"(transformer_encoder\.blocks\.\d+\.)?sln\.(ln\.(weight|bias)|(gamma|beta)\.weight)|"
    r"transformer_encoder\.blocks\.\d+\.(msa\.(qkv|projection)\.(weight|bias)|feed_forward\.\d\.weight)|"
    r"siren\.net\.\d+\.((linear\.)?weight|(linear\.)?modulation\.weight)|to_single_emb\.0\.(weight|bias)"
)
DISCRIMINATOR = (
    r"0\.(cls_token|positions)|1\.\d+\.[01]\.fn\.0\.(weight|bias)|2\.0\.(weight|bias)|"
    r"(0\.projection\.0|1\.\d+\.0\.fn\.1\.(qkv|projection)|1\.\d+\.1\.fn\.1\.[03]|2\.\d)"
    r"\.(module\.(bias|weight_u|weight_v|weight_bar)|sigma_init)"
)
NETWORKS = {"generator": (GENERATOR, "pos_emb"), "discriminator": (DISCRIMINATOR, "0.cls_token")}

PARTS = {
    "generator": ("pos_emb", "mlp.fc0.", "lff.ffm.conv.", "transformer_encoder.blocks.0.", "sln.", "siren.net.0."),
    "discriminator": ("0.cls_token", "0.positions", "0.projection.0.module.", "1.0.", "2.0.", "2.1.module."),
}
"""How the names of what every network has begin."""
ALIKE = (
    r"(?P<first>mlp\.fc)(?P<number>\d+)(?P<last>\..+)",
    r"(?P<first>transformer_encoder\.blocks\.)(?P<number>\d+)(?P<last>\..+)",
    r"(?P<first>1\.)(?P<number>\d+)(?P<last>\..+)(?<!sigma_init)",
)
"""Names of parts that are numbered from 0, each with the same tensors."""

NOT_CARRIED = {
    "generator": """\
vitgan's own generator computes something else, so that no preset, seed-cifar10 included, can hold these weights, and
`vitgan sample` cannot use them:
  - w has as many features as a token, here it has those of z;
  - one SLN serves both sites of a block, with a LayerNorm that has weights, here each site has its own without;
  - what a block's feed-forward computes is thrown away, here it is added;
  - the positions are a table, sin(pos_emb), here a function of the place;
  - the SIREN reads the pixels of a patch in the place of the channels.""",
    "discriminator": """\
vitgan's own discriminator computes something else, so that no preset, seed-cifar10 included, can hold these weights:
  - queries and keys have projections of their own, here they share one;
  - attention goes by +distance, to the farthest token, here by -distance squared;
  - 49 patches without padding have a table of positions, here 64 have a function of the place;
  - the head has four layers and a GELU after the last, here it is one linear layer.""",
}


@dataclass(frozen=True)
class ImportSeed:
    """Read a checkpoint of ViTGAN-pytorch, the original implementation, and write its tensors as safetensors.

    Whole modules and state_dicts of torch.save are read, and nothing in them is run: a pickle that names anything but
    the original's own classes and tensors is refused. The tensors keep their names and values.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Generator.pth or discriminator.pth."""
    out: Path | None = None
    """File to write; None puts it beside the checkpoint, as .safetensors."""


def main(arguments: list[str]) -> int:
    """Prints what was written, and what cannot be carried over."""
    options = tyro.cli(ImportSeed, args=arguments, prog="vitgan import-seed")
    if options.out is not None and options.out.is_dir():
        raise ValueError(f"--out {options.out} is a folder: give the name of the file to write")
    tensors = load_tensors(options.checkpoint)
    network = _network(options.checkpoint, tensors)
    out = options.out or options.checkpoint.with_suffix(".safetensors")
    metadata = {"format": "pt", "network": f"{network} of ViTGAN-pytorch"}
    with atomic_write(out) as file:
        file.write(save(tensors, metadata))
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"{network}: {len(tensors)} tensors, {numbers:,} numbers -> {out}")
    print(NOT_CARRIED[network])
    print(
        "In the original's own code, module.load_state_dict(safetensors.torch.load_file(FILE), strict=False) takes "
        "them,\nand vitgan_kernels.swap(module) puts this project's operators in, with the same mathematics."
    )
    return 0


def _network(path: Path, tensors: dict[str, Tensor]) -> str:
    for network, (names, mark) in NETWORKS.items():
        if mark in tensors:
            strange = [name for name in tensors if not re.fullmatch(names, name)]
            if strange:
                raise CheckpointError(f"{path} is a {network} with tensors that ViTGAN-pytorch has not: {strange[:5]}")
            missing = _missing(network, tensors)
            if missing:
                some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
                raise CheckpointError(f"{path} is a {network} that is not whole, it lacks {some}: take another file")
            return network
    raise CheckpointError(f"{path} is no network of ViTGAN-pytorch: it has neither pos_emb nor 0.cls_token")


def _missing(network: str, tensors: dict[str, Tensor]) -> list[str]:
    """What is not there of what every network has, or of what the others of its numbered parts have."""
    missing = [f"{part}*" for part in PARTS[network] if not any(name.startswith(part) for name in tensors)]
    for pattern in ALIKE:
        found = [match for match in (re.fullmatch(pattern, name) for name in tensors) if match]
        count = max((int(match["number"]) for match in found), default=-1) + 1
        kinds = {(match["first"], match["last"]) for match in found}
        every = (f"{first}{number}{last}" for number in range(count) for first, last in sorted(kinds))
        missing += [name for name in every if name not in tensors]
    return missing
