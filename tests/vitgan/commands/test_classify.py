"""The vision transformer as a classifier."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.vitgan.helpers import nano, training
from vitgan.cli import main
from vitgan.commands.classify import _print_matrix, attention_picture
from vitgan.data import Shapes, TensorDataset
from vitgan.files import from_uint8
from vitgan.models import DiscriminatorConfig
from vitgan.training.checkpoint import save_checkpoint, save_config
from vitgan.training.classifier import Classifier, confusion, fit, learning_rate, split
from vitgan_kernels.reference import l2_attention

CONFIG = DiscriminatorConfig(patch_size=4, dim=16, depth=1, heads=2)
SMALL = shlex.split("--model.patch-size 4 --model.dim 16 --model.depth 1 --image-size 8 --device cpu --batch-size 16")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images of two classes: bright above and bright below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, top in (("above", 0), ("below", 4)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(20):
            image = Image.new("RGB", (8, 8), (number, 20, 40))
            image.paste((200, 200 - number, 220), (0, top, 8, top + 4))
            image.save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path


def test_train_then_predict_from_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "train", "data", *SMALL, "--steps", "60", "--out", "c"]) == 0
    said = capsys.readouterr().out
    assert "100.0% of 4 test images -> c" in said
    assert "above" in said
    assert json.loads(Path("c/test.json").read_text())["confusion"] == [[2, 0], [0, 2]]
    assert main(["classify", "predict", "c", "data", "--attention", "maps"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 40
    for name, predicted, probability in lines:
        assert name.startswith(predicted)
        assert 0.5 < float(probability) <= 1
    with Image.open("maps/above/0.png.png") as picture:
        assert picture.size == (768, 256)
    Path("data/dangling.png").symlink_to("nowhere.png")
    assert main(["classify", "predict", "c", "data/above/3.png"]) == 0  # whatever else lies there
    assert capsys.readouterr().out.startswith("3.png\tabove")
    assert main(["classify", "predict", "c", "data"]) == 1
    assert "data: dangling.png cannot be read (No such file or directory): remove it" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["data", "data/maps"])
def test_pictures_of_attention_do_not_go_among_the_images(
    folder: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", "train", "data", *SMALL, "--steps", "1", "--out", "c"]) == 0
    before = Path("data/above/1.png").read_bytes()
    assert main(["classify", "predict", "c", "data", "--attention", folder]) == 1
    assert f"--attention {folder} lies in the folder of the images: choose another" in capsys.readouterr().err
    assert Path("data/above/1.png").read_bytes() == before


def test_images_that_cannot_be_read_are_named_and_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "train", "data", *SMALL, "--steps", "1", "--out", "c", "--threads", "1"]) == 0
    Path("data/above/1.png").write_bytes(Path("data/above/2.png").read_bytes()[:30])
    Path("data/below/7.png").write_bytes(b"")
    capsys.readouterr()
    assert main(["classify", "predict", "c", "data", "--attention", "maps", "--threads", "1"]) == 1
    said = capsys.readouterr()
    named = [line.split("\t")[0] for line in said.out.splitlines()]
    assert len(named) == 38
    assert not {"above/1.png", "below/7.png"} & set(named)
    assert not Path("maps/above/1.png.png").exists()
    lines = said.err.splitlines()
    assert [line.split(": ")[:2] for line in lines[:2]] == [["left out", "above/1.png"], ["left out", "below/7.png"]]
    assert lines[2] == "2 of 40 images cannot be read"


def test_threads_are_those_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "data"], ["predict", "c", "data"]):
        assert main(["classify", *command, "--threads", "0"]) == 1
        assert "threads must be at least 1 and at most 1024, got 0" in capsys.readouterr().err


def test_an_encoder_from_a_trained_discriminator(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nano = shlex.split("""
        --generator.patch-size 4 --generator.latent-dim 8 --generator.dim 8 --generator.depth 1 --generator.heads 1
        --generator.mapping-depth 1 --discriminator.patch-size 4 --discriminator.dim 8 --discriminator.depth 1
        --discriminator.heads 1 --batch-size 4 --evaluate-samples 4 --no-tensorboard --device cpu --image-size 8
    """)
    assert main(["train", *nano, "--data", "data", "--images", "8", "--out", "run"]) == 0
    trained = Classifier.from_discriminator(Path("run"), ["a", "b", "c"])
    assert trained.head.out_features == 3
    capsys.readouterr()
    assert main(["classify", "train", "data", "--encoder", "run", "--steps", "2", "--device", "cpu", "--out", "c"]) == 0
    assert Classifier.load(Path("c")).class_names == ["above", "below"]
    assert Classifier.load(Path("c")).config.dim == 8


@pytest.mark.parametrize("content", [b"", b"rubbish" * 9, b"\xff" * 16, b"\x00" * 8, None])
def test_an_encoder_that_is_damaged(here: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_checkpoint(training(), here / "run", trainer_state={}, keep=1) / "training.safetensors"
    save_config(nano(), here / "run")
    path.write_bytes(path.read_bytes()[:-9] if content is None else content)
    assert main(["classify", "train", "shapes", "--encoder", "run"]) == 1
    said = capsys.readouterr().err
    assert "training.safetensors is damaged: take another checkpoint, or remove this one (" in said
    assert said.count("\n") == 1


def test_the_encoder_s_weights_are_the_discriminator_s(here: Path) -> None:
    from tests.vitgan.helpers import batch, nano, training
    from vitgan.training.checkpoint import save_checkpoint, save_config

    state = training()
    state.step(batch(0))
    save_config(nano(), here / "run")
    save_checkpoint(state, here / "run", trainer_state={}, keep=1)
    classifier = Classifier.from_discriminator(here / "run", ["a", "b"])
    images = batch(1)
    state.discriminator.eval()
    expected = state.discriminator.encode(images)  # type: ignore[operator]
    torch.testing.assert_close(classifier.eval().encode(images), expected)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--steps", "0", "--steps must be at least 1, got 0"),
        ("--batch-size", "-1", "--batch-size must be at least 1, got -1"),
        ("--lr", "0", "--lr must be positive and finite, got 0.0"),
        ("--lr", "inf", "--lr must be positive and finite, got inf"),
        ("--lr", "nan", "--lr must be positive and finite, got nan"),
        ("--test-share", "1", "--test-share must be between 0 and 1, got 1.0"),
        ("--warm-up", "1", "--warm-up must be at least 0 and below 1, got 1.0"),
    ],
)
def test_settings_out_of_range(flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["classify", "train", "data", flag, value])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_images_held_out_are_a_share_of_each_class_and_not_trained_on() -> None:
    dataset = Shapes(8, size=240)
    train, test = split(dataset, 0.2, seed=0)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(240))
    assert torch.bincount(dataset.labels[test]).tolist() == [2] * 24
    assert not torch.equal(split(dataset, 0.2, seed=1)[1], test)


def test_learning_rate_warms_up_and_follows_a_cosine_to_zero() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[100] == pytest.approx(0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_confusion_counts_true_against_predicted() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    dataset = TensorDataset(images, labels=torch.tensor([0, 0, 1, 2, 2]))
    classifier = Classifier(CONFIG, ["a", "b", "c"], image_size=8).eval()
    predicted = classifier(from_uint8(images)).argmax(1).tolist()
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for truth, guess in zip([0, 0, 1, 2, 2], predicted, strict=True):
        expected[truth, guess] += 1
    assert torch.equal(confusion(classifier, dataset, torch.arange(5)), expected)


def test_the_last_block_computes_the_class_token_alone() -> None:
    classifier = Classifier(CONFIG, ["a", "b"], image_size=16).eval()
    lengths: list[int] = []
    block: Any = classifier.blocks[-1]
    block.mlp.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    logits = classifier(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 2)
    assert lengths == [1]


def test_attention_is_what_the_operator_weighs_tokens_by() -> None:
    """Where values are the tokens' own numbers, its result is the row of weights."""
    classifier = Classifier(CONFIG, ["a", "b"], image_size=16).eval()
    images = torch.randn(2, 3, 16, 16)
    attention = classifier.attention(images)
    assert attention.shape == (2, 4, 4)
    seen: list[torch.Tensor] = []
    block: Any = classifier.blocks[-1].attention
    block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    classifier(images)
    with torch.no_grad():
        q = block._split(block.to_q(seen[0]))
        one_each = torch.eye(17).expand(2, 2, 17, 17)
        weights = l2_attention(q, None, one_each, scale=q.shape[-1] ** -0.5)[:, :, 0].mean(1)
    torch.testing.assert_close(attention.flatten(1), weights[:, 1:])


def test_the_picture_of_attention_is_enlarged_and_lights_the_image() -> None:
    image = torch.full((3, 16, 16), 0.5)
    attention = torch.zeros(4, 4)
    attention[0, 0] = 0.2
    image_part, map_part, lit = attention_picture(image, attention).split(256, dim=2)
    assert image_part.shape == map_part.shape == lit.shape == (3, 256, 256)
    assert (image_part == 0.5).all()
    assert map_part[:, 0, 0].tolist() == [1.0] * 3
    assert map_part[:, -1, -1].tolist() == [-1.0] * 3
    torch.testing.assert_close(lit[:, 0, 0], torch.full((3,), 0.5))
    assert (lit[:, -1, -1] < 0).all()


def test_it_learns() -> None:
    torch.manual_seed(0)
    dataset = Shapes(8, size=480)
    classifier = Classifier(CONFIG, dataset.modes, image_size=8)
    losses: list[tuple[int, float]] = []
    fit(
        classifier,
        dataset,
        torch.arange(480),
        steps=245,
        batch_size=32,
        lr=8e-3,
        warm_up=0.1,
        seed=0,
        progress=lambda done, loss: losses.append((done, loss)),
    )
    assert [done for done, _ in losses] == [*range(10, 250, 10), 245]
    first = losses[0][1]
    assert first == pytest.approx(math.log(24), rel=0.3)
    assert all(loss < 0.6 * first for _, loss in losses[-5:])
    assert not classifier.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "data/above"], "has no classes"),
        (["predict", "nowhere", "data"], "holds no classifier"),
        (["predict", "data/above", "data"], "holds no classifier: give the folder that vitgan classify train wrote"),
        (["train", "data", "--out", "data/above/0.png"], "a folder is needed there"),
        (["train", "data", "--encoder", "nowhere"], "does not exist"),
    ],
)
def test_what_cannot_work_is_said(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["classify", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify"]) == 2
    assert main(["classify", "--help"]) == 0
    assert "vitgan classify predict" in capsys.readouterr().out


def test_a_matrix_too_wide_for_the_terminal_is_told_class_by_class(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class {number}" for number in range(24)]
    _print_matrix(2 * torch.eye(24, dtype=torch.int64), names)
    assert "  class 23: 2 of 2\n" in capsys.readouterr().out
    _print_matrix(torch.tensor([[3, 1], [0, 4]]), ["a", "b"])
    assert "true" in capsys.readouterr().out


def test_another_classifier_is_not_replaced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["classify", "train", "data", *SMALL, "--steps", "1", "--out", "c"]
    assert main(train) == 0
    assert main(train) == 1
    assert "--out c is not empty: choose another" in capsys.readouterr().err
    assert main(["classify", "tain"]) == 2
    assert "no command 'tain'" in capsys.readouterr().err
