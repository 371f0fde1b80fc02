"""Scores of generators against data sets: their names, their cache, what they order."""

import hashlib
import sys
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from tests.vitgan.helpers import nano
from vitgan.data import Shapes, TensorDataset
from vitgan.files import from_uint8
from vitgan.metrics import features as features_file
from vitgan.metrics.features import EfficientNetLite0, FeatureNetwork, Inception, MetricError, load_network
from vitgan.metrics.scores import Scorer
from vitgan.models import Generator, GeneratorConfig, ImageGenerator


class Pixels(FeatureNetwork):
    """Means of quarters of an image: features that cost nothing."""

    name = "pixels"
    key = "pixels 1"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        self.seen += len(images)
        features = nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)
        return features, features if self.is_inception else None


class Replay(Generator):
    """A generator that gives out given images: w is their number."""

    def __init__(self, images: Tensor) -> None:
        super().__init__(GeneratorConfig(patch_size=8, dim=8, heads=1, depth=1, latent_dim=8), image_size=32)
        self.images = images

    def map_latents(self, count: int, **_: object) -> Tensor:
        return torch.arange(count).unsqueeze(1)

    def synthesise(self, w: Tensor) -> Tensor:
        return self.images[w[:, 0]]


def shapes(seed: int, count: int = 60) -> Tensor:
    return from_uint8(Shapes(32, size=count, seed=seed).fetch(range(count)))


def test_scores_are_named_after_their_network_and_never_fid_unless_on_inception(tmp_path: Path) -> None:
    scorer = Scorer(Shapes(32, size=60), Pixels(), samples=60, cache=tmp_path)
    scores = scorer(Replay(shapes(1)))
    assert set(scores) == {
        "frechet_pixels",
        "kernel_pixels",
        "precision_pixels",
        "recall_pixels",
    }


@pytest.mark.parametrize(("samples", "warned"), [(12, True), (13, False)])
def test_fewer_images_than_features_call_for_caution(samples: int, warned: bool, tmp_path: Path) -> None:
    """Pixels has twelve features: the covariance of as many images has no full rank."""
    caution = Scorer(Shapes(32, size=60), Pixels(), samples=samples, cache=tmp_path).warning()
    assert (caution is not None) == warned
    if caution:
        assert caution.startswith("12 images are too few for the covariance of 12 features")


def test_on_inception_they_have_their_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pixels, "is_inception", True)
    scores = Scorer(Shapes(32, size=60), Pixels(), samples=60, cache=tmp_path)(Replay(shapes(1)))
    assert {"fid", "kid", "inception_score", "precision", "recall"} <= set(scores)
    assert all("pixels" not in name for name in scores)


def test_statistics_of_the_data_are_kept_by_content_and_settings(tmp_path: Path) -> None:
    def looked_at(dataset: Any, **options: Any) -> int:
        network = Pixels()
        network.key = options.pop("key", network.key)
        Scorer(dataset, network, cache=tmp_path, **{"samples": 40, **options})
        return network.seen

    dataset = Shapes(32, size=60)
    assert looked_at(dataset) == 40
    assert looked_at(dataset) == 0
    assert looked_at(Shapes(32, size=60)) == 0, "the same content"
    assert looked_at(Shapes(32, size=60, seed=1)) == 40
    assert looked_at(dataset, samples=30) == 30
    assert looked_at(dataset, seed=1) == 40
    assert looked_at(dataset, key="pixels 2") == 40
    assert looked_at(dataset) == 0
    for file in (tmp_path / "statistics").iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    assert looked_at(dataset) == 40, "a damaged file is made again"


def test_kept_statistics_give_the_same_scores(tmp_path: Path) -> None:
    first, again = (
        Scorer(Shapes(32, size=60), Pixels(), samples=60, cache=tmp_path)(Replay(shapes(1))) for _ in range(2)
    )
    assert first == again


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (lambda: Shapes(32, channels=1, size=60), "RGB images, and shapes has 1 channels"),
        (lambda: TensorDataset(torch.zeros(5, 3, 8, 8, dtype=torch.uint8)), "at least 10 images, got 5"),
    ],
)
def test_data_that_cannot_be_scored(tmp_path: Path, dataset: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scorer(dataset(), Pixels(), samples=60, cache=tmp_path)


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite_pytorch")
    return EfficientNetLite0()


def test_efficientnet_lite0_orders_real_images_blur_and_noise(lite0: EfficientNetLite0, tmp_path: Path) -> None:
    scorer = Scorer(Shapes(32, size=60), lite0, samples=60, cache=tmp_path)
    real = shapes(1)
    blurred = nn.functional.avg_pool2d(real, 7, stride=1, padding=3, count_include_pad=False)
    noise = torch.rand(60, 3, 32, 32) * 2 - 1
    names = ("frechet_efficientnet_lite0", "kernel_efficientnet_lite0")
    a, b, c = (scorer(Replay(images)) for images in (real, blurred, noise))
    for name in names:
        assert a[name] < b[name] < c[name]
    assert c["precision_efficientnet_lite0"] < a["precision_efficientnet_lite0"]


def test_efficientnet_lite0_is_an_image_classifier_s_features(lite0: EfficientNetLite0) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features, logits = lite0(images)
    assert features.shape == (2, 1280)
    assert logits is None
    assert torch.equal(features, lite0(images)[0])
    assert not lite0.is_inception
    with pytest.raises(MetricError, match="RGB images of 8 bits"):
        lite0(images.float())


def test_missing_packages_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MetricError, match=r"pip install 'vitgan\[fid\]', or score on efficientnet-lite0"):
        load_network("inception")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MetricError, match=r"pip install 'vitgan\[metrics\]'"):
        load_network("efficientnet-lite0")


class FakeInception(nn.Module):
    """As torch-fidelity's, without its size: it loads its weights from a file, strictly, when it is made."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.fc = nn.Linear(4, 1008)
        self.load_state_dict(torch.load(feature_extractor_weights_path))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(len(images), 4), torch.ones(len(images), 1008)


@pytest.fixture
def inception_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the FID Inception's weights where torch-fidelity is installed, and what has their digest."""
    package, extractor = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    extractor.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    path = tmp_path / "elsewhere" / "weights.pth"
    path.parent.mkdir()
    extractor.URL_INCEPTION_V3 = path.as_uri()  # type: ignore[attr-defined]
    package.feature_extractor_inceptionv3 = extractor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    torch.save({"fc.weight": torch.zeros(1008, 4), "fc.bias": torch.zeros(1008)}, path)
    monkeypatch.setattr(features_file, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return path


def test_inception_comes_from_torch_fidelity_with_its_weights_by_path(inception_file: Path) -> None:
    network = Inception(inception_file)
    assert network.is_inception
    assert features_file.INCEPTION_SHA256[:16] in network.key
    features, logits = network(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert features.shape == (2, 4)
    assert logits is not None


def test_inception_is_downloaded_once(inception_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Inception()
    assert f"downloading {inception_file.as_uri()}" in capsys.readouterr().err
    kept = tmp_path / "hub" / "checkpoints" / inception_file.name
    assert kept.read_bytes() == inception_file.read_bytes()
    inception_file.unlink()
    Inception()
    kept.unlink()
    with pytest.raises(MetricError, match=r"cannot be had \(.*\): give a copy of file://.*--weights"):
        Inception()


def test_another_network_is_never_called_inception(inception_file: Path, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(1008, 4), "fc.bias": torch.zeros(1008)}, tmp_path / "finetuned.pth")
    with pytest.raises(MetricError, match=r"finetuned\.pth is not the FID Inception \(SHA-256 .* are not FID: give"):
        Inception(tmp_path / "finetuned.pth")
    with pytest.raises(MetricError, match=r"nowhere\.pth.*--inception-weights"):
        Inception(tmp_path / "nowhere.pth")
    inception_file.write_text("cut off while it came")  # as a proxy's page of an error would be
    with pytest.raises(MetricError, match=r"cannot be had .*hash value"):
        Inception()
    assert not (tmp_path / "hub" / "checkpoints" / inception_file.name).exists()


@pytest.mark.parametrize("error", [TimeoutError(), IncompleteRead(b"half")])
def test_a_download_that_breaks_says_what_to_do(
    error: Exception, inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", Mock(side_effect=error))
    with pytest.raises(MetricError, match=rf"cannot be had \({type(error).__name__}.*--inception-weights"):
        Inception()


def test_statistics_that_cannot_be_kept_are_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    with pytest.warns(UserWarning, match="statistics of the data are not kept"):
        scorer = Scorer(TensorDataset(images), Pixels(), samples=20, cache=tmp_path / "file")
    assert len(scorer.real.mean) == 12


def test_a_real_generator_is_scored(tmp_path: Path) -> None:
    generator: ImageGenerator = Generator(nano().generator, image_size=8)
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    scorer = Scorer(TensorDataset(images), Pixels(), samples=100, cache=tmp_path)
    assert scorer.samples == 20
    assert scorer(generator) == scorer(generator)
    assert scorer(generator, truncation=0.5) != scorer(generator)
