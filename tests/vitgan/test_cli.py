import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vitgan.helpers import assert_same
from vitgan.cli import main
from vitgan.files import to_uint8
from vitgan.training.checkpoint import list_checkpoints, load_generator
from vitgan_kernels.backends import BackendError

NANO = shlex.split("""
    --generator.patch-size 8 --generator.latent-dim 8 --generator.dim 8 --generator.depth 1 --generator.heads 1
    --generator.mapping-depth 1 --discriminator.patch-size 8 --discriminator.dim 8 --discriminator.depth 1
    --discriminator.heads 1 --batch-size 4 --evaluate-samples 16 --no-tensorboard --device cpu
""")


HUGE = shlex.split("--generator.dim 65536 --generator.depth 64 --generator.heads 64")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path) -> Path:
    assert main(["train", *NANO, "--images", "8", "--out", "run"]) == 0
    return here / "run"


def test_train_then_sample_a_grid_a_folder_and_a_strip(run: Path) -> None:
    assert main(["sample", "run", "--count", "6", "--out", "grid.png"]) == 0
    assert main(["sample", "run", "--count", "6", "--out", "folder"]) == 0
    assert main(["sample", "run", "--count", "6", "--interpolate", "--out", "strip.png"]) == 0
    assert main(["sample", "run", "--count", "6", "--out", "grid.jpg"]) == 0
    assert size(Path("grid.jpg")) == size(Path("grid.png"))
    assert size(Path("grid.png")) == (3 * 34 + 2, 2 * 34 + 2)
    assert size(Path("strip.png")) == (6 * 34 + 2, 34 + 2)
    assert [path.name for path in sorted(Path("folder").iterdir())] == [f"{n:06d}.png" for n in range(6)]


def test_sampling_again_with_the_same_seed_gives_the_same_picture(run: Path) -> None:
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        main(["sample", str(run), "--seed", seed, "--out", name])
    a, b, c = (Path(name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert a == b
    assert a != c


def test_flags_override_the_preset_and_the_result_is_saved(run: Path) -> None:
    saved = json.loads((run / "config.json").read_text())
    assert saved["preset"] == "tiny"
    assert saved["batch_size"] == 4
    assert saved["generator"]["dim"] == 8


def test_the_number_of_threads_is_set(here: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert main(["train", *NANO, "--images", "4", "--threads", "2"]) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_image_i_of_a_seed_is_the_same_picture_in_a_grid_a_folder_and_an_array_of_any_count(run: Path) -> None:
    for out, count in (("grid.png", "5"), ("array.npz", "33"), ("folder", "34")):
        assert main(["sample", "run", "--count", count, "--out", out]) == 0
    whole = to_uint8(load_generator(run).sample(34)).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load("array.npz")["images"], whole[:33])
    for number, name in enumerate(sorted(Path("folder").iterdir())):
        assert np.array_equal(np.asarray(Image.open(name)), whole[number])
    sheet = np.asarray(Image.open("grid.png"))
    for number in range(5):
        row, column = (2 + 34 * place for place in divmod(number, 3))
        assert np.array_equal(sheet[row : row + 32, column : column + 32], whole[number])


def test_one_image_is_too_few_to_train_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "data").mkdir()
    Image.new("RGB", (32, 32)).save(here / "data" / "only.png")
    assert main(["train", "--data", "data"]) == 1
    assert "at least two" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_folder_given_by_a_relative_path_is_found_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "data").mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(here / "data" / f"{number}.png")
    assert main(["train", *NANO, "--data", "data", "--images", "4", "--out", "run"]) == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert main(["train", "--resume", str(here / "run"), "--images", "8"]) == 0


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("vitgan")


def test_a_file_in_the_way_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").touch()
    assert main(["sample", "run", "--count", "1", "--out", "taken"]) == 1
    assert "taken" in capsys.readouterr().err


def test_runs_are_numbered_by_default(here: Path) -> None:
    main(["train", *NANO, "--images", "4"])
    assert list_checkpoints(here / "runs" / "00000-tiny-shapes")


def test_resume_goes_on_with_the_run_s_own_configuration(run: Path) -> None:
    assert main(["train", "--resume", "run", "--images", "16"]) == 0
    assert [int(path.name) for path in list_checkpoints(run)] == [8, 16]


@pytest.mark.parametrize(
    "flag", [["--out", "other"], ["--batch-size", "2"], ["--generator.dim", "16"], ["--seed", "5"]]
)
def test_resume_refuses_changes_that_do_not_fit_the_saved_state(
    run: Path, flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "run", "--images", "16", *flag]) == 1
    assert "cannot change when a run is resumed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "no/such/folder"], "no data at"),
        (["train", "--resume", "no/such/run"], "no/such/run does not exist: give a run directory"),
        (["train", "--resume", "/dev/null"], "/dev/null is a file: give a run directory"),
        (["train", "--resume", "a/run", "--preset", "cifar10"], "leave out --preset"),
        (["train", "--device", "nonsense"], "--device 'nonsense' names no device: give cpu, cuda, cuda:1, ...\n"),
        (["train", "--image-size", "30"], "multiple of the patch size"),
        (["train", "--device", "meta"], "cannot be used here"),
        (["train", "--generator.dim", "9"], "positive multiple of heads"),
        (["train", *HUGE], "the networks need at least "),
        (["sample", "no/such/run"], "does not exist"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing_behind(
    here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert list(here.iterdir()) == []


def test_commands_are_found_in_other_threads_too(capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, ["sample", "nowhere"]).result() == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def in_a_program(code: str) -> tuple[int, str, str]:
    """Status, output and errors of a program that imports the command line, and nothing slow, and has Ctrl-C."""
    start = """if True:
        import os, signal, sys
        from types import SimpleNamespace
        from vitgan import cli

        assert "torch" not in sys.modules, "until then nothing takes long"
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script starts in the background
    """
    result = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout, result.stderr


def test_ctrl_c_during_the_first_imports_is_no_traceback() -> None:
    code = """
        def interrupted_where_python_loses_it(name):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError(name)

        cli.import_module = interrupted_where_python_loses_it
        sys.exit(cli.main(["sample"]))
    """
    assert in_a_program(code) == (130, "", "")


def test_ctrl_c_at_any_line_of_the_command_line_is_no_traceback() -> None:
    """At its first line, its second, and so on, each in a process of its own."""
    code = """
        import rich.console
        from vitgan.errors import VitganError

        def fail(arguments):
            raise VitganError("cannot work")

        def interrupt_at(line):
            lines = 0

            def trace(frame, event, argument):
                nonlocal lines
                if frame.f_code.co_filename != cli.__file__ or frame.f_code.co_name == "main":
                    return None
                lines += event == "line"
                if lines == line and event == "line":
                    signal.raise_signal(signal.SIGINT)
                return trace

            sys.settrace(trace)
            status = cli.main(["sample"])
            sys.settrace(None)
            os._exit(status if lines >= line else 99)

        cli.import_module = lambda name: SimpleNamespace(main=fail)
        line, status = 0, 130
        while status == 130:
            line += 1
            child = os.fork()
            if not child:
                interrupt_at(line)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(line, status)
    """
    status, said, errors = in_a_program(code)
    assert "Traceback" not in errors
    lines, last = map(int, said.split())
    assert (status, last) == (0, 99), f"at line {lines}"
    assert lines > 20


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileExistsError(errno.EEXIST, "File exists", "here"), "here: file exists: a folder is needed there"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: not a directory: a folder is needed"),
        (PermissionError(errno.EACCES, "Permission denied", Path("p")), "p: permission denied: choose another place"),
        (OSError(errno.ELOOP, "Too many links", "loop"), "loop: too many links: choose another"),
        (OSError("an encoder's own words"), "an encoder's own words"),
        (BackendError("backend 'cuda' was asked for"), "backend 'cuda' was asked for"),
    ],
)
def test_what_others_raise_is_one_line(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("vitgan.commands.sample.main", fail)
    assert main(["sample"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"vitgan sample: {message}")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("of PyTorch's own"), KeyError("x"), RuntimeError("of PyTorch's own")])
def test_what_nobody_expects_shows_where_it_comes_from(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("vitgan.commands.sample.main", fail)
    assert main(["sample"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("please report it, with the lines above\n")


def test_unknown_flags_and_commands_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paint"]) == 2
    assert "no command 'paint'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--batchsize", "4"])
    assert exit_info.value.code == 2
    assert main(["train", "--preset", "cifar"]) == 1
    assert "did you mean 'cifar10'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--batch-size", "0"])
    assert exit_info.value.code == 2
    assert "batch_size must be at least 1" in capsys.readouterr().err


def test_help_names_commands_presets_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "vitgan train" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for expected in (
        "vitgan-pytorch-cifar10",
        "--resume",
        "--generator.omega",
        "--optimiser.ema-half-life",
        "--loss.bcr-real",
    ):
        assert expected in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_saves_and_says_how_to_resume_and_the_rest_is_bit_for_bit_the_same(
    here: Path, number: signal.Signals
) -> None:
    arguments = ["train", *NANO, "--images", "200", "--log-every", "4"]
    assert main([*arguments, "--out", "whole"]) == 0
    command = [sys.executable, "-m", "vitgan", *arguments, "--out", "parts"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout
    wait_for_lines(process, 4)
    process.send_signal(number)
    said, _ = process.communicate()
    assert process.returncode == 130
    assert "go on with: vitgan train --resume parts" in said
    stopped_at = [int(path.name) for path in list_checkpoints(here / "parts")]
    assert 0 < stopped_at[-1] < 200
    assert main(["train", "--resume", "parts"]) == 0
    assert_same(load_generator("whole").state_dict(), load_generator("parts").state_dict())


@pytest.mark.parametrize("place", ["a reader that leaves", "/dev/full"])
def test_a_run_outlives_its_console(here: Path, place: str) -> None:
    (here / "f\udcff").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(here / "f\udcff" / f"{number}.png")
    command = [sys.executable, "-m", "vitgan", "train", *NANO, "--data", "f\udcff", "--images", "16"]
    command += ["--out", "run", "--log-every", "4"]
    with Path(place if place.startswith("/") else os.devnull).open("w") as full:
        out = full if place == "/dev/full" else subprocess.PIPE
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, encoding="ascii")
    if process.stdout:
        assert "f\\udcff" in process.stdout.readline()
        process.stdout.close()
    with process:
        assert process.stderr
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert said.count("\n") == said.count("standard output is lost (") == 1
    assert [int(path.name) for path in list_checkpoints(here / "run")][-1] == 16


def wait_for_lines(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdout
    for line in process.stdout:  # ends when the process does
        count -= "images/s" in line
        if not count:
            return
    pytest.fail("the run ended before")


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
