"""vitgan train."""

from vitgan.data import open_dataset
from vitgan.devices import pick_device, use_threads
from vitgan.training.distributed import torchrun_ranks
from vitgan.training.logging import import_wandb
from vitgan.training.loop import Trainer
from vitgan.training.runs import new_run_directory
from vitgan.training.settings import read_settings, with_data
from vitgan.training.state import Adversarial


def main(arguments: list[str]) -> int:
    """vitgan train: values come from the preset, a file and the flags, or from the run that is resumed."""
    settings = read_settings(arguments)
    config = settings.config
    use_threads(config.threads)
    with torchrun_ranks(config.device) as ranks:
        with ranks.first_goes_ahead():  # the others find what it decoded in the cache
            dataset = open_dataset(config.data, image_size=config.image_size, channels=config.channels)
        if len(dataset) < 2:
            raise ValueError(f"{config.data} has one image: training needs at least two")
        settings = with_data(settings, dataset)
        config = settings.config
        if config.wandb:
            import_wandb()
        training = Adversarial(config, pick_device(config.device), ranks)
        # Made last, so that nothing is left behind where a run cannot even start.
        run = settings.resume or ranks.same(new_run_directory(config) if ranks.is_first else None)
        trainer = Trainer(config, run, dataset=dataset, training=training, changes=settings.changes)
        finished = trainer.train()
    return 0 if finished else 130
