import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeImages = Callable[[Path, list[str]], None]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitgan"


def picture(seed: int, size: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def make_images() -> MakeImages:
    """Writes a random 8x8 PNG for each name; the i-th name gets the picture of seed i."""

    def make(root: Path, names: list[str]) -> None:
        for i, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(png(picture(i)))

    return make


@pytest.fixture
def pixels() -> Callable[[int], np.ndarray]:
    """The picture of a seed as (3, 8, 8)."""
    return lambda seed: np.asarray(picture(seed)).transpose(2, 0, 1)
