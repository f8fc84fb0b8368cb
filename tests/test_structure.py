"""The shape of the project: imports only go down, `import largebatch` stays light, the README's map is the tree."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "largebatch"

# From the bottom up. A part may import the parts named with it, itself, and nothing else of the package.
PURE = ["counter_random", "errors", "batch", "scaling", "schedules", "plans", "plan_text", "noise_scale"]
PURE += ["samples_to_target"]
ALLOWED: dict[str, list[str]] = {
    "errors": [],
    "aside": [],
    "stage_view": [],
    "networks": ["errors"],
    "counter_random": [],
    "batch": [],
    "schedules": ["batch"],
    "scaling": ["batch"],
    "plans": ["batch", "scaling", "schedules"],
    "noise_scale": [],
    "samples_to_target": ["errors"],
    "plan_text": ["plans", "scaling"],
    "optim.kernels": [],
    "optim": ["optim.kernels"],
    "text": ["counter_random", "errors"],
    "bert": ["counter_random", "errors", "aside", "stage_view", "networks", "text"],
    "gpt": ["counter_random", "errors", "stage_view", "networks", "text"],
    "vision": ["counter_random", "errors", "stage_view", "networks"],
    "train": [*PURE, "aside", "stage_view", "optim", "optim.kernels"],
    "report": [*PURE, "aside", "train"],
    "study": ["errors", "aside", "report", "train", "samples_to_target"],
    "advise": [*PURE, "aside", "train", "report"],
    "advise_verb": [*PURE, "aside", "command_line", "advise", "recipes", "report", "train", "whole_way"],
    "classification": ["errors", "stage_view"],
    "study_trial": ["errors", "recipes", "report", "study", "train"],
    "study_display": ["report", "study"],
    "study_verb": ["errors", "recipes", "study", "study_trial", "study_display", "text", "train"],
    "command_line": ["errors"],
    "prepare_display": ["text"],
    "predict": ["errors", "bert"],
    "whole_way": ["errors", "batch", "text", "bert", "train", "recipes", "prepare_display"],
    "recipes": [*PURE, "optim", "text", "bert", "gpt", "vision", "train", "report", "study", "command_line"],
    "cli": [
        *(*PURE, "text", "train", "report", "study", "recipes"),
        *("command_line", "prepare_display", "predict", "whole_way", "study_verb", "advise_verb"),
    ],
    "__main__": ["cli"],
    "__init__": ["optim"],
}
NO_TORCH = ["errors", "aside", "counter_random", "batch", "schedules", "scaling", "plans", "plan_text"]
NO_TORCH += ["noise_scale", "samples_to_target"]


def part_of(module: str) -> str:
    """Return the part that a module below the package belongs to: ``optim.kernels.foreach`` is in optim.kernels."""
    names = module.split(".")
    for length in range(len(names), 0, -1):
        if ".".join(names[:length]) in ALLOWED:
            return ".".join(names[:length])
    return names[0]


def imports(source: str) -> set[str]:
    """Return every module that the source imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module or "")
            if node.module == "largebatch":
                found |= {f"largebatch.{alias.name}" for alias in node.names}
    return found


def violations(part: str, source: str) -> list[str]:
    """Return what a file of a part imports against the rule."""
    wrong = []
    for name in sorted(imports(source)):
        if name.startswith("largebatch."):
            other = part_of(name.removeprefix("largebatch."))
            if other != part and other not in ALLOWED[part]:
                wrong.append(name)
        if part in NO_TORCH and name.split(".")[0] == "torch":
            wrong.append(name)
    return wrong


def _files() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", _files(), ids=str)
def test_imports_only_go_down(file: Path) -> None:
    module = ".".join(file.with_suffix("").parts)
    module = module.removesuffix(".__init__")
    assert violations(part_of(module), (PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("schedules", "import torch"),
        ("optim", "from largebatch.train.run import Run"),
        ("train", "def f():\n    from largebatch.bert import pairs"),
        ("bert", "from largebatch import optim"),
        ("optim.kernels", "import largebatch.optim.lamb"),
    ],
)
def test_the_rule_catches(part: str, source: str) -> None:
    assert violations(part, source)


def test_import_largebatch_needs_torch_and_numpy_only() -> None:
    script = (
        "import sys, torch, numpy; before = set(sys.modules); import largebatch; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    outside = [name for name in told.stdout.split() if name != "largebatch" and name not in sys.stdlib_module_names]
    assert set(outside) <= {"torch", "numpy"}


def test_the_map_of_the_readme_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- map -->\n```\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    mapped = [line.split()[0] for line in block[1].splitlines() if line.strip()]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    wanted = [name for name in tracked if not name.endswith(("__init__.py", "py.typed"))] + [
        "src/largebatch/__init__.py"
    ]
    assert len(mapped) == len(set(mapped)), "a file stands twice in the map"
    covered = {
        name for entry in mapped for name in wanted if name == entry or (entry.endswith("/") and name.startswith(entry))
    }
    assert sorted(set(wanted) - covered) == [], "files that the map leaves out"
    gone = [
        entry
        for entry in mapped
        if not any(n == entry or (entry.endswith("/") and n.startswith(entry)) for n in wanted)
    ]
    assert gone == [], "entries of the map that are not in the tree"


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for folder, most in (("src", 400), ("tests", 700))
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > most
    }
    assert long == {}
