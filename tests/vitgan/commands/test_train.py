"""From a command line to a configuration: preset, file, flags; resuming; classes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.vitgan.helpers import nano
from vitgan.commands.train import new_run_directory, read_settings, with_classes, with_data
from vitgan.config import Config
from vitgan.data import TensorDataset
from vitgan.errors import TrainingError
from vitgan.presets import PRESETS
from vitgan.training.checkpoint import save_config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return ["--config", str(path)]


def test_flags_come_after_the_file_and_the_file_after_the_preset(here: Path) -> None:
    file = write(here / "a.toml", 'batch-size = 32\nimages = 5\n[generator]\ndim = 192\n[loss]\nkind = "hinge"\n')
    config = read_settings(["--preset", "cifar10", *file, "--images", "7"]).config
    preset = PRESETS["cifar10"]
    expected = replace(
        preset,
        batch_size=32,
        images=7,
        generator=replace(preset.generator, dim=192),
        loss=replace(preset.loss, kind="hinge"),
    )
    assert config == expected


def test_a_preset_in_the_file_is_where_its_values_start_from(here: Path) -> None:
    file = write(here / "a.toml", 'preset = "cifar10"\nimages = 5\n')
    assert read_settings(file).config == replace(PRESETS["cifar10"], images=5)
    assert read_settings(["--preset", "cifar10", *file]).config == replace(PRESETS["cifar10"], images=5)
    with pytest.raises(ValueError, match="made for the preset 'cifar10', and --preset says 'tiny'"):
        read_settings(["--preset", "tiny", *file])


def test_the_configuration_saved_with_a_run_is_a_file_for_another(here: Path) -> None:
    before = nano(images=99, out=None)
    save_config(before, here)
    assert read_settings(["--config", str(here / "config.json")]).config == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bach_size = 3", "unknown key 'bach_size' in Config: did you mean 'batch_size'?"),
        (
            "[optimiser]\nema_halflife = 1",
            "unknown key 'ema_halflife' in OptimiserConfig: did you mean 'ema_half_life'?",
        ),
        ("[loss]\nxyzzy = 1", "unknown key 'xyzzy' in LossConfig: it has kind, bcr_real"),
        ('[loss]\nkind = "wasserstein"', "kind must be one of logistic, hinge, relativistic, got 'wasserstein'"),
        ('batch_size = "3"', "Config.batch_size must be int, got '3'"),
        ("batch_size = true", "Config.batch_size must be int, got True"),
        ("loss = 3", "Config.loss must be a table of settings, got 3"),
        ("out = 5", "Config.out must be a string, got 5"),
        ("device = ['cpu']", "Config.device must be a string, got ['cpu']"),
        ("class_names = 'abc'", "Config.class_names must be a list of strings, got 'abc'"),
        ("class_names = [1]", "Config.class_names must be a list of strings, got [1]"),
        ("[images]\nx = 1", "Config.images must be int, got {'x': 1}"),
        ("[optimiser]\ng_lr = nan", "optimiser.g_lr must be positive, got nan"),
        ("[optimiser]\ng_lr = inf", "optimiser.g_lr must be a finite number, got inf"),
        ("[optimiser]\nbeta2 = 1", "optimiser.beta2 must be at least 0 and below 1, got 1"),
        ("[loss]\nr1 = -1", "loss.r1 must be at least 0, got -1"),
        ("[loss]\npenalty_every = 0", "loss.penalty_every must be at least 1, got 0"),
        ("[augment]\ncolor = 2", "augment.color must be a probability from 0 to 1, got 2"),
        ("keep_checkpoints = 0", "keep_checkpoints must be at least 1, got 0"),
        ("evaluate_samples = 1", "evaluate_samples must be at least 2, got 1"),
        ('"loss.kind" = "hinge"', "unknown key 'loss.kind' in Config: write 'kind' into a table of its own, 'loss'"),
        ("seed = 9223372036854775808", "seed must be from -9223372036854775808 to 9223372036854775807, got 922"),
        ("batch_size = -1", "batch_size must be at least 1"),
        ("batch_size = ", "a.toml"),
        *((f"{name} = 1{'0' * 20}", f"{name} must be from 1 to ") for name in ("image_size", "images", "batch_size")),
        *(
            (f"[{part}]\n{name} = {value}", f"{part}.{name} must be from ")
            for part, names in {
                "generator": "latent_dim dim depth heads siren_dim mapping_depth patch_size siren_hidden_layers",
                "discriminator": "dim depth heads patch_size",
                "cnn_generator": "latent_dim width max_width mapping_depth",
                "stylegan2_discriminator": "width minibatch_group",
            }.items()
            for name in names.split()
            for value in ("-1", "1" + "0" * 20)
        ),
        ("[generator]\nmlp_ratio = 1e308", "generator.mlp_ratio must be from 0.001 to 64, got 1e+308"),
        ("[cnn_generator]\nmapping_lr_multiplier = -1", "mapping_lr_multiplier must be from 1e-06 to 1,000.0, got -1"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(here: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"a\.toml: ") as info:
        read_settings(write(here / "a.toml", text))
    assert message in str(info.value)


def test_a_file_of_another_kind_is_no_settings(here: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.yaml: settings come from a \.toml or a \.json file"):
        read_settings(write(here / "a.yaml", ""))


def test_what_changes_as_a_run_is_resumed_is_told(here: Path) -> None:
    before = replace(nano(), data="shapes", out=Path("run"))
    save_config(before, here / "run")
    assert read_settings(["--resume", "run"]).changes == ()
    changed = read_settings(["--resume", "run", "--loss.kind", "hinge", "--images", "99"]).changes
    assert changed == (f"loss.kind: {before.loss.kind} -> hinge", f"images: {before.images} -> 99")
    auto = [*write(here / "a.json", (here / "run/config.json").read_text()), "--resume", "auto", "--out", "run"]
    assert read_settings([*auto, "--loss.kind", "hinge"]).changes == changed[:1] + read_settings(auto).changes


@pytest.mark.parametrize("name", ["shapes", "cifar10"])
def test_a_folder_of_that_name_does_not_take_a_data_set_s_place(here: Path, name: str) -> None:
    for each in (name, "mine"):
        (here / each).mkdir()
    assert read_settings(["--data", name]).config.data == name
    assert read_settings(["--data", "mine"]).config.data == str(here / "mine")
    assert read_settings(["--data", f"./{name}"]).config.data == str(here / name)


def test_whole_numbers_serve_where_fractions_do(here: Path) -> None:
    assert read_settings(write(here / "a.toml", "max_minutes = 3\n[loss]\nr1 = 1\n")).config.loss.r1 == 1


def test_resume_auto_starts_then_goes_on_with_the_same_command_line(here: Path) -> None:
    command = ["--resume", "auto", "--images", "12"]
    first = read_settings(command)
    assert first.resume is None
    run = new_run_directory(first.config)
    assert read_settings(command).resume is None, "a folder without a configuration is no run yet"
    save_config(first.config, run)
    assert read_settings([*command[:3], "24"]).resume == run
    assert read_settings([*command[:3], "24"]).config.images == 24
    assert read_settings(["--resume", "auto", "--preset", "vitgan-pytorch-cifar10"]).resume is None, (
        "another kind of run"
    )
    with pytest.raises(TrainingError, match="batch_size cannot change"):
        read_settings([*command, "--batch-size", "2"])


def test_resume_auto_with_a_place_of_its_own(here: Path) -> None:
    command = ["--resume", "auto", "--out", "place"]
    first = read_settings(command)
    assert first.resume is None
    save_config(first.config, here / "place")
    assert read_settings(command).resume == Path("place")


def images(count: int, names: str = "") -> TensorDataset:
    dataset = TensorDataset(torch.zeros(count, 3, 8, 8, dtype=torch.uint8), name="images")
    dataset.identity = names
    return dataset


def started(command: list[str], dataset: TensorDataset) -> Path:
    """The run that a command line starts or goes on with."""
    settings = with_data(read_settings(command), dataset)
    run = settings.resume or new_run_directory(settings.config)
    save_config(settings.config, run)
    return run


@pytest.mark.parametrize("change", ["place", "count", "names"])
def test_resume_auto_starts_a_new_run_on_other_data(here: Path, change: str) -> None:
    for place in "ab":
        (here / place / "images").mkdir(parents=True)
    command = ["--resume", "auto", "--data", "a/images"]
    first = started(command, images(4, "x"))
    assert started(command, images(4, "x")) == first
    now = {"place": (images(4, "y"), "b"), "count": (images(5, "x"), "a"), "names": (images(4, "y"), "a")}[change]
    other = [*command[:3], f"{now[1]}/images"]
    second = started(other, now[0])
    assert second != first
    assert started(other, now[0]) == second
    assert json.loads((first / "config.json").read_text())["data"] == str(here / "a/images")


def test_data_may_move_but_not_change_under_a_run(here: Path) -> None:
    for place in "ab":
        (here / place).mkdir()
    run = started(["--data", "a", "--out", "run"], images(4, "x"))
    for command in (["--resume", "run", "--data", "b"], ["--resume", "auto", "--out", "run", "--data", "b"]):
        assert started(command, images(4, "x")) == run
        with pytest.raises(TrainingError, match="the data now is 4 images, y, but run was trained on 4 images, x"):
            started(command, images(4, "y"))


def test_resume_auto_by_another_path_from_another_folder_and_after_a_move(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(["--out", "place/run"], images(4)).resolve()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    for path in (run, "../place/run"):
        assert read_settings(["--resume", "auto", "--out", str(path)]).changes == ()
        assert read_settings(["--resume", str(path), "--out", str(path)]).resume == Path(path)
    run.rename(here / "moved")
    assert read_settings(["--resume", "auto", "--out", "../moved"]).resume == Path("../moved")
    with pytest.raises(TrainingError, match="out cannot change"):
        read_settings(["--resume", "../moved", "--out", "new"])


def test_a_resumed_run_brings_its_own_configuration(here: Path) -> None:
    save_config(nano(out=None), here / "run")
    for flags in (["--preset", "tiny"], write(here / "a.toml", "seed = 1")):
        with pytest.raises(ValueError, match="with its own configuration"):
            read_settings(["--resume", "run", *flags])
    assert read_settings(["--resume", "run", "--images", "1"]).config == nano(out=None, images=1)


def labelled(names: list[str] | None = None) -> TensorDataset:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    return TensorDataset(images, labels=torch.tensor([0, 1, 1, 2]), class_names=names)


def test_classes_come_from_the_data() -> None:
    assert with_classes(nano(), labelled()).class_names == ()
    assert with_classes(nano(conditional=True), labelled(["a", "b", "c"])).class_names == ("a", "b", "c")
    assert with_classes(nano(conditional=True), labelled()).class_names == ("0", "1", "2")


def test_a_conditional_run_needs_classes_and_on_resuming_the_same() -> None:
    with pytest.raises(ValueError, match="--conditional needs classes, and nano has none"):
        with_classes(nano(conditional=True), TensorDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)))
    with pytest.raises(ValueError, match="was trained on x, y, z"):
        with_classes(nano(conditional=True, class_names=("x", "y", "z")), labelled(["a", "b", "c"]))


def test_class_names_survive_json(here: Path) -> None:
    config: Config = nano(conditional=True, class_names=("a", "b"), out=None)
    save_config(config, here)
    assert json.loads((here / "config.json").read_text())["class_names"] == ["a", "b"]
    assert read_settings(["--resume", str(here)]).config == config
