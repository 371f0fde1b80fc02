"""Data sets of the Hugging Face hub, through its own library (an extra)."""

from pathlib import Path
from typing import Any

from vitgan.data.base import DataError
from vitgan.data.sources import Labels, Member, number_classes


class HubImages:
    """The training split of a data set of the hub, as an archive of encoded images."""

    def __init__(self, dataset_name: str) -> None:
        try:
            import datasets
        except ImportError:
            raise DataError(f"hf:{dataset_name} needs the `datasets` library: pip install 'vitgan[data]'") from None
        self.title = f"hf:{dataset_name}"
        self.left_out = ""
        try:
            split = datasets.load_dataset(dataset_name, split="train")
        except Exception as error:  # network, name, licence gate, format: the library has an exception for each
            raise DataError(f"{self.title}: {error}") from error
        columns = [name for name, kind in split.features.items() if isinstance(kind, datasets.Image)]
        if not columns:
            raise DataError(f"{self.title}: no column of images; it has {', '.join(split.column_names)}")
        self.labels = _labels(datasets, split)
        # The encoded bytes, so that they go through the same decoder as files do.
        self._rows = split.select_columns(columns[:1]).cast_column(columns[0], datasets.Image(decode=False))
        self._column = columns[0]
        self.members = [Member(f"{self.title}/{i}", "") for i in range(len(split))]
        if not self.members:
            raise DataError(f"{self.title}: the training split is empty")
        # The library's fingerprint stands for the content of every row.
        self.members[0] = Member(self.members[0].name, f"{self.title} {split._fingerprint}")

    def read(self, name: str) -> bytes:
        cell = self._rows[int(name.rpartition("/")[2])][self._column]
        if cell["bytes"] is not None:
            return bytes(cell["bytes"])
        return Path(cell["path"]).read_bytes()


def _labels(datasets: Any, split: Any) -> Labels:
    for name, kind in split.features.items():
        if isinstance(kind, datasets.ClassLabel):
            # This column alone: a row of all columns would decode its image.
            values = list(split.select_columns([name])[:][name])
            return None if None in values else number_classes(values, dict(enumerate(kind.names)))
    return None
