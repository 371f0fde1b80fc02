import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vitgan.data.conftest import picture, png
from vitgan.data import DataError, decode, open_dataset


class Image:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    names = ("odd", "even")


class Split:
    """As much of the library's `Dataset` as is used: rows by number, columns by name."""

    _fingerprint = "0123"

    def __init__(self, features: dict[str, Any], columns: dict[str, list[Any]]) -> None:
        self.features, self.columns = features, columns
        self.column_names = list(features)

    def __len__(self) -> int:
        return len(self.columns[self.column_names[0]])

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        assert not any(isinstance(kind, Image) and kind.decode for kind in self.features.values()), "decodes every row"
        return {name: self.columns[name][rows] for name in self.column_names}

    def select_columns(self, names: list[str]) -> "Split":
        return Split({name: self.features[name] for name in names}, self.columns)

    def cast_column(self, name: str, kind: Image) -> "Split":
        assert not kind.decode
        return Split({**self.features, name: kind}, self.columns)


def split(path: Path | None = None) -> Split:
    cells: list[dict[str, Any]] = [{"bytes": png(picture(i)), "path": None} for i in range(12)]
    if path is not None:
        path.write_bytes(cells[3]["bytes"])
        cells[3] = {"bytes": None, "path": str(path)}
    features = {"id": None, "img": Image(), "label": ClassLabel()}
    return Split(features, {"id": list(range(12)), "img": cells, "label": [i % 2 for i in range(12)]})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Split | Exception], None]:
    """Puts a stand-in in the place of the library, which is an extra; its `load_dataset` gives or raises this."""

    def install(result: Split | Exception) -> None:
        def load_dataset(name: str, split: str) -> Split:
            assert (name, split) == ("someone/animals", "train")
            if isinstance(result, Exception):
                raise result
            return result

        library = types.ModuleType("datasets")
        library.__dict__.update(Image=Image, ClassLabel=ClassLabel, load_dataset=load_dataset)
        monkeypatch.setitem(sys.modules, "datasets", library)

    return install


def test_images_and_labels(hub: Callable[[Split], None], pixels: Callable[[int], np.ndarray], tmp_path: Path) -> None:
    hub(split(tmp_path / "three.png"))
    dataset = open_dataset("hf:someone/animals", image_size=8)
    assert np.array_equal(dataset.fetch(range(12)), [pixels(i) for i in range(12)])
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1] * 6
    assert dataset.class_names == ["odd", "even"]
    assert dataset.name == "hf:someone/animals"


def test_another_version_is_decoded_anew(
    hub: Callable[[Split], None], monkeypatch: pytest.MonkeyPatch, pixels: Callable[[int], np.ndarray]
) -> None:
    monkeypatch.setattr(decode, "WORTH_KEEPING_SECONDS", -1.0)
    hub(split())
    open_dataset("hf:someone/animals", image_size=8)
    changed = split()
    changed.columns["img"].reverse()
    changed._fingerprint = "4567"
    hub(changed)
    assert np.array_equal(open_dataset("hf:someone/animals", image_size=8).fetch([0])[0], pixels(11))


def test_errors(hub: Callable[[Split | Exception], None], monkeypatch: pytest.MonkeyPatch) -> None:
    hub(ConnectionError("no such data set"))
    with pytest.raises(DataError, match="hf:someone/animals: no such data set"):
        open_dataset("hf:someone/animals")
    hub(Split({"id": None, "text": None}, {"id": [1], "text": ["a"]}))
    with pytest.raises(DataError, match="no column of images; it has id, text"):
        open_dataset("hf:someone/animals")
    hub(Split({"img": Image()}, {"img": []}))
    with pytest.raises(DataError, match="empty"):
        open_dataset("hf:someone/animals")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'vitgan\[data\]'"):
        open_dataset("hf:someone/animals")
