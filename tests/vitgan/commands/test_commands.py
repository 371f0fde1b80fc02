"""The commands that use a trained generator."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vitgan.cli import main
from vitgan.commands import sample
from vitgan.commands.project import difference, project
from vitgan.commands.sample import _frames_of, save_video
from vitgan.config import Config, from_dict
from vitgan.errors import VitganError
from vitgan.files import save_image
from vitgan.models.build import build_generator
from vitgan.training.checkpoint import load_generator

NANO = shlex.split("""
    --generator.patch-size 8 --generator.latent-dim 8 --generator.dim 8 --generator.depth 1 --generator.heads 1
    --generator.mapping-depth 1 --discriminator.patch-size 8 --discriminator.dim 8 --discriminator.depth 1
    --discriminator.heads 1 --batch-size 4 --evaluate-samples 16 --no-tensorboard --device cpu --images 8
""")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert main(["train", *NANO, "--out", str(folder / "plain")]) == 0
    assert main(["train", *NANO, "--conditional", "--out", str(folder / "classes")]) == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_an_array_of_samples(runs: Path, here: Path) -> None:
    assert main(["sample", str(runs / "plain"), "--count", "5", "--out", "a.NPZ"]) == 0
    images = np.load("a.NPZ")["images"]
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == np.uint8
    assert main(["sample", str(runs / "plain"), "--count", "5", "--out", "folder"]) == 0
    with Image.open("folder/000003.png") as image:
        assert np.array_equal(np.asarray(image), images[3])


def test_videos(runs: Path, here: Path) -> None:
    for name in ("walk.gif", "walk.mp4"):
        assert main(["sample", str(runs / "plain"), "--count", "6", "--out", name]) == 0
    with Image.open("walk.gif") as video:
        assert video.size == (256, 256)
        assert getattr(video, "n_frames", 1) >= 5, "frames that happen to be equal are merged"
    assert Path("walk.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("fps", [20, 30, 47])
def test_a_gif_takes_as_long_as_its_images_should(here: Path, fps: int) -> None:
    save_video(torch.rand(24, 3, 8, 8) * 2 - 1, Path("walk.gif"), fps=fps)
    with Image.open("walk.gif") as video:
        lengths = []
        for number in range(24):
            video.seek(number)
            lengths.append(video.info["duration"])
    assert sum(lengths) == pytest.approx(24_000 / fps, abs=5)
    assert max(lengths) - min(lengths) <= 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.bmp"], "--out x.bmp ends in .bmp, which is not written here: give one of .png, .jpg, "),
        (["--out", "walk.gif", "--fps", "51"], "a .gif shows from 1 to 50 images a second, got fps 51"),
        (["--out", "walk.mp4", "--fps", "1000"], "a .mp4 shows from 1 to 240 images a second, got fps 1000"),
        (["--out", "taken.png"], "--out taken.png is a folder"),
        (["--seed", str(2**63)], "seed must be from -9223372036854775808 to 9223372036854775807, got 922"),
        (["--truncation", "nan"], "truncation must be a finite number, got nan"),
    ],
)
def test_what_sample_cannot_write_is_said_and_nothing_is_written(
    runs: Path, here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken.png").mkdir()
    assert main(["sample", str(runs / "plain"), "--count", "2", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["taken.png"]


def test_a_folder_of_samples_may_have_a_dot_in_its_name(runs: Path, here: Path) -> None:
    Path("old.d").mkdir()
    for out in ("v1.5", "old.d"):
        assert main(["sample", str(runs / "plain"), "--count", "2", "--out", out]) == 0
        assert len(list(Path(out).iterdir())) == 2


def test_an_encoder_that_is_missing(
    runs: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert main(["sample", str(runs / "plain"), "--count", "2", "--out", "walk.mp4"]) == 1
    assert "pip install 'vitgan[video]', or write a .gif" in capsys.readouterr().err


def test_a_video_that_is_cut_short_replaces_nothing(
    runs: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("walk.mp4").write_text("before")
    monkeypatch.setattr("vitgan.commands.sample._frames_of", lambda path: 5)
    assert main(["sample", str(runs / "plain"), "--count", "6", "--out", "walk.mp4"]) == 1
    assert "walk.mp4: the encoder wrote 5 of 6 images: is the disk full?" in capsys.readouterr().err
    assert Path("walk.mp4").read_text() == "before"
    assert [path.name for path in here.iterdir()] == ["walk.mp4"]


def test_an_encoder_that_ends_early(runs: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends_early(path: str, *args: object, **kwargs: object) -> Iterator[None]:
        Path(path).write_bytes(b"half")
        yield
        raise OSError("broken pipe")

    monkeypatch.setattr("imageio_ffmpeg.write_frames", ends_early)
    with pytest.raises(VitganError, match=r"walk\.mp4: the encoder wrote 0 of 6 images"):
        save_video(torch.zeros(6, 3, 8, 8), Path("walk.mp4"), fps=10)
    assert not list(here.iterdir())


def test_frames_are_counted_of_what_can_be_read(here: Path) -> None:
    images = torch.zeros(7, 3, 8, 8)
    save_video(images, Path("a.mp4"), fps=10)
    assert _frames_of(Path("a.mp4")) == 7
    Path("cut.mp4").write_bytes(Path("a.mp4").read_bytes()[:500])
    assert _frames_of(Path("cut.mp4")) == 0


def test_truncation_pulls_images_together(runs: Path, here: Path) -> None:
    spread = []
    for psi in ("1", "0.5", "0"):
        main(["sample", str(runs / "plain"), "--count", "16", "--truncation", psi, "--out", "a.npz"])
        spread.append(np.load("a.npz")["images"].astype(float).std(0).mean())
    assert spread[0] > spread[1] > spread[2] == 0


def test_samples_of_a_class(runs: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(runs / "classes")
    for name, label in (("a", ["red circle"]), ("b", ["0"]), ("c", ["cyan cross"])):
        assert main(["sample", model, "--count", "3", "--label", *label, "--out", f"{name}.npz"]) == 0
    a, b, c = (np.load(f"{name}.npz")["images"] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert main(["sample", model, "--label", "purple"]) == 1
    assert "no class 'purple'; there are 0 red circle, 1 orange circle" in capsys.readouterr().err
    assert main(["sample", str(runs / "plain"), "--label", "0"]) == 1
    assert "not conditional" in capsys.readouterr().err


def test_eval_prints_scores_and_keeps_them(runs: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    assert main(["eval", str(runs / "plain"), "--samples", "12", "--device", "cpu"]) == 0
    said, errors = capsys.readouterr()
    assert "frechet_efficientnet_lite0" in said
    assert "fid" not in said.lower()
    assert "caution: 12 images are too few for the covariance of 1,280 features" in errors
    [line] = (runs / "plain" / "scores.jsonl").read_text().splitlines()
    scores = json.loads(line)
    assert scores["samples"] == 12
    assert scores["images"] == 8
    assert scores["network"].startswith("efficientnet-lite0 ")


def test_eval_without_torch_fidelity_says_how_to_get_fid(
    runs: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert main(["eval", str(runs / "plain"), "--network", "inception", "--device", "cpu"]) == 1
    assert "pip install 'vitgan[fid]'" in capsys.readouterr().err


def test_scores_during_training(here: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    assert main(["train", *NANO, "--features", "efficientnet-lite0", "--out", "run"]) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines if "frechet_efficientnet_lite0" in line] == [0, 8]


def test_projection_finds_an_image_of_the_generator_s_own(runs: Path) -> None:
    generator = load_generator(runs / "plain")
    target = generator.sample(1, seed=5)[0]
    start = difference(generator.render(generator.mean_w().unsqueeze(0)), target.unsqueeze(0))
    w = project(generator, target, steps=60)
    assert w.shape == (1, generator.latent_dim)
    assert difference(generator.render(w), target.unsqueeze(0)) < 0.1 * start


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_projection_of_few_steps_goes_somewhere(runs: Path, steps: int) -> None:
    generator, told = load_generator(runs / "plain"), list[float]()
    target = generator.sample(1, seed=5)[0]
    mean = generator.mean_w().unsqueeze(0)
    w = project(generator, target, steps=steps, progress=told.append)
    assert len(told) == steps
    assert difference(generator.render(w), target[None]) < difference(generator.render(mean), target[None])


def test_project_writes_both_images_and_w(runs: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image(torch.rand(3, 40, 50) * 2 - 1, here / "photo.png")
    model = str(runs / "plain")
    assert main(["project", model, "photo.png", "--steps", "4", "--out", "out/p.png"]) == 0
    found = np.load("out/p.npz")
    assert found["image"].shape == found["target"].shape == (3, 32, 32)
    rendered = load_generator(model).render(torch.from_numpy(found["w"]))[0]
    torch.testing.assert_close(rendered, torch.from_numpy(found["image"]))
    assert "dB" in capsys.readouterr().out
    (here / "broken.png").write_bytes(b"no image")
    assert main(["project", model, "photo.png", "--out", "p.npz"]) == 1
    assert "p.npz is no name of a picture: give one that ends in .png" in capsys.readouterr().err
    assert main(["project", model, "broken.png"]) == 1
    assert "broken.png cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plain", "classes"])
def test_export_is_checked_and_can_be_loaded(
    name: str, runs: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(runs / name), "--out", "out"]) == 0
    assert "from PyTorch in a pixel" in capsys.readouterr().out
    generator = load_generator(runs / name)
    z, labels = generator.latents(5, seed=9), generator.random_labels(5, seed=9)
    session = onnxruntime.InferenceSession("out/generator.onnx", providers=["CPUExecutionProvider"])
    given = {"z": z.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
    [images] = session.run(None, given)
    torch.testing.assert_close(torch.from_numpy(images), generator(z, labels), rtol=1e-3, atol=1e-4)
    again = build_generator(from_dict(Config, json.loads(Path("out/config.json").read_text())))
    again.load_state_dict(load_file("out/model.safetensors"))
    assert torch.equal(again.eval().sample(2), generator.sample(2))
    card = Path("out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: vitgan\n")
    assert "8 images of training" in card
    assert ("red circle" in card) == (name == "classes")


def test_an_export_replaces_no_file_of_somebody_else(
    runs: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(runs / "plain"), "--out", ".", "--no-onnx"]
    for name in ("README.md", "config.json"):
        Path(name).write_text("mine")
        assert main(command) == 1
        assert f"has a {name} that is no export's and would be replaced: choose another" in capsys.readouterr().err
        assert [path.name for path in here.iterdir()] == [name]
        assert Path(name).read_text() == "mine"
        Path(name).unlink()
    assert main(command) == 0
    assert main(command) == 0, "an earlier export is"


def test_classes_that_are_numbers_go_by_name_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "run_of", lambda checkpoint: checkpoint)
    monkeypatch.setattr(sample, "latest_checkpoint", lambda model: model)
    monkeypatch.setattr(sample, "load_config", lambda run: Config(class_names=("1", "10", "2")))
    assert sample.class_number(Path("run"), "2").tolist() == [2]
    with pytest.raises(ValueError, match="no class is called '0'; there are 1, 10, 2"):
        sample.class_number(Path("run"), "0")
    monkeypatch.setattr(sample, "load_config", lambda run: Config(class_names=("a", "b")))
    assert sample.class_number(Path("run"), "1").tolist() == [1]


def test_a_folder_never_holds_images_of_two_calls(runs: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ["sample", str(runs / "plain"), "--out", "folder", "--count"]
    assert main([*sample, "3"]) == 0
    assert main([*sample, "4"]) == 0
    assert main([*sample, "2"]) == 1
    assert "--out folder holds other files (000002.png and so on)" in capsys.readouterr().err
    assert len(list(Path("folder").iterdir())) == 4
