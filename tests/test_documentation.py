"""The code blocks of README.md and docs/ run, and the error messages that docs/troubleshooting.md quotes exist.

A comment on the line before a block says how it is run; without one, it is run as it stands:

    <!-- ci: NAME -->        by .ci/run, in a fresh environment
    <!-- run small -->       each `vitgan train` gets SMALL as further options
    <!-- not run: WHY -->    not at all; its `vitgan` commands and options must exist
"""

import ast
import inspect
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

import vitgan
import vitgan_kernels
from vitgan.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<marker>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
SMALL = shlex.split("""
    --generator.patch-size 8 --generator.latent-dim 8 --generator.dim 8 --generator.depth 1 --generator.heads 1
    --generator.mapping-depth 1 --discriminator.patch-size 8 --discriminator.dim 8 --discriminator.depth 1
    --discriminator.heads 1 --batch-size 4 --evaluate-samples 16 --no-tensorboard --device cpu --images 8
""")


@dataclass(frozen=True)
class Block:
    """A code block of a page, and what the comment before it says."""

    page: str
    line: int
    marker: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        joined = self.code.replace("\\\n", " ")
        return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("language")) + 1
            found.append(Block(page.name, line, match["marker"] or "", match["language"], match["code"]))
    return found


BLOCKS = blocks()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages speak of: a run, images, images by class, a photo, a configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for index, folder in enumerate(["images", "images", "classes/one", "classes/two"] * 4):
        path = tmp_path / "path/to" / folder / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (16 * index, 99, 200)).save(path)
    Image.new("RGB", (40, 32), (200, 30, 30)).save("photo.png")
    Path("mine.toml").write_text("seed = 3\n")
    return tmp_path


def test_every_block_is_seen() -> None:
    fences = sum(len(re.findall(r"^```\w", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert len(BLOCKS) == fences > 0


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_says_how_it_is_run(block: Block) -> None:
    assert block.language in ("python", "sh", "text"), "code that nothing runs: call it python, sh or text"
    assert re.fullmatch(r"|ci: (train|test)|run small|not run: .{10,}", block.marker), block.marker


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python" and not b.marker], ids=str)
def test_python(block: Block, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "runs/" in block.code:
        assert main(["train", *SMALL]) == 0
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})
    torch._dynamo.reset()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh" and b.marker in ("", "run small")], ids=str)
def test_commands(block: Block, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "runs/0" in block.code:
        assert main(["train", *SMALL]) == 0
    for program, *arguments in block.commands:
        assert program == "vitgan", f"only vitgan's own commands are run: mark {block}"
        small = SMALL if block.marker == "run small" and arguments[0] == "train" else []
        try:
            status = main([*arguments, *small])
        except SystemExit as end:  # --help
            status = int(end.code or 0)
        assert status == 0, (arguments, capsys.readouterr().err)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.marker.startswith("not run")], ids=str)
def test_options_of_commands_that_are_not_run(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    for words in block.commands if block.language == "sh" else []:
        if "vitgan" not in words or words[0] == "pip":
            continue
        command, *rest = words[words.index("vitgan") + 1 :]
        assert command in COMMANDS
        subcommand = rest[:1] if command == "classify" else []
        with pytest.raises(SystemExit):
            main([command, *subcommand, "--help"])
        known = capsys.readouterr().out
        for option in (word for word in rest if word.startswith("--")):
            assert option in known, f"{block}: vitgan {command} has no {option}"


def strings(path: Path) -> str:
    """The text of all string literals of a file, {} where a value is put in."""
    if path.suffix != ".py":
        return path.read_text()
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values))
    return "\n".join(found)


def quotations() -> list[str]:
    return re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


def test_every_quoted_message_is_in_the_source() -> None:
    sources = [*(ROOT / "vitgan").rglob("*.py"), *(ROOT / "kernels").rglob("*.py"), ROOT / "setup.py", ROOT / "run"]
    source = "\n".join(strings(path) for path in sources)
    quoted = quotations()
    assert len(quoted) >= 10
    assert [message for message in quoted if message.replace("...", "{}") not in source] == []


@pytest.mark.parametrize("package", [vitgan_kernels, vitgan], ids=lambda package: package.__name__)
def test_every_public_name_says_what_it_is(package: ModuleType) -> None:
    public = {name: getattr(package, name) for name in package.__all__ if not name.startswith("_")}
    methods = {
        f"{name}.{method}": function
        for name, value in public.items()
        if inspect.isclass(value)
        for method, function in vars(value).items()
        if inspect.isfunction(function) and not method.startswith("_") and method != "forward"  # the class says that
    }
    assert [name for name, value in (public | methods).items() if not (value.__doc__ or "").strip()] == []


@pytest.mark.parametrize("name", ["l2_attention", "modulated_linear", "modulated_siren", "spectral_norm"])
def test_an_operator_states_its_contract(name: str) -> None:
    operator = getattr(vitgan_kernels, name)
    text = inspect.getdoc(operator) or ""
    assert re.search(r"Args:", text)
    assert re.search(r"Returns:\n +\S", text)
    assert re.search(r"Raises( and derivatives)?:", text)
    assert re.search(r"[Dd]erivatives[,:]", text)
    assert re.search(r"\d{4}\)|section \d", text), "the paper"
    for argument in inspect.signature(operator).parameters:
        assert re.search(rf"^ +(\w+, )*{argument}(, \w+)*:", text, re.MULTILINE), argument
