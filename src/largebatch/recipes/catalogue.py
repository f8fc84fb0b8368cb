"""Recipes by name, and the way from a command line to a run."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from largebatch.command_line import nearest, parse, parse_known
from largebatch.errors import InputError
from largebatch.train.batch_growth import grown, read_growth
from largebatch.train.run import Run
from largebatch.train.run_record import Origin

Recipe = Callable[..., Run[Any, Any]]

RECIPES: dict[str, str] = {
    "bert-demo": "largebatch.recipes.bert:bert_demo",
    "bert-tiny": "largebatch.recipes.bert:bert_tiny",
    "bert-base": "largebatch.recipes.bert:bert_base",
    "bert-base-mixed": "largebatch.recipes.bert:bert_base_mixed",
    "bert-large": "largebatch.recipes.bert:bert_large",
    "bert-large-mixed": "largebatch.recipes.bert:bert_large_mixed",
    "bert-large-nvidia": "largebatch.recipes.bert:bert_large_nvidia",
    "bert-study": "largebatch.recipes.bert_study:bert_study",
    "squad": "largebatch.recipes.squad:squad",
    "gpt-mini": "largebatch.recipes.gpt:gpt_mini",
    "gpt2": "largebatch.recipes.gpt:gpt2",
    "digits": "largebatch.recipes.mnist:digits",
    "mnist": "largebatch.recipes.mnist:mnist",
    "cifar10": "largebatch.recipes.cifar10:cifar10",
    "resnet50": "largebatch.recipes.resnet50:resnet50",
}


def find_recipe(name: str) -> tuple[Recipe, str]:
    """Return a recipe and its dotted name, from a name of the catalogue, ``module:function`` or ``FILE.py:function``.

    Raises:
        InputError: if there is none of that name.
    """
    return find_function(name, RECIPES, "recipe")


def find_function(name: str, known: Mapping[str, str], kind: str) -> tuple[Callable[..., Any], str]:
    """Return a function and its dotted name, from a name that is known, ``module:function`` or ``FILE.py:function``.

    Args:
        name: what the user typed.
        known: name -> dotted name.
        kind: what it is called in a message.

    Raises:
        InputError: if there is none of that name.
    """
    dotted = known.get(name, name)
    if ":" not in dotted:
        raise InputError(
            f"there is no {kind} {name!r}{nearest(name, known)}: allowed are {', '.join(known)}, "
            "or module:function of your own"
        )
    module_name, _, function_name = dotted.rpartition(":")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        own_fault = isinstance(error, ModuleNotFoundError) and not module_name.startswith(error.name or "?")
        if own_fault:
            raise
        raise InputError(f"there is no {kind} {name!r}: {module_name} cannot be found") from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"there is no {kind} {name!r}: {module_name} has no function {function_name}")
    return function, dotted


def _load_file(path: Path) -> ModuleType:
    """Import a file under a name made from its path, so that worker processes and pickles can find it again."""
    if not path.is_file():
        raise FileNotFoundError(path)
    sys.path.insert(0, str(path.resolve().parent))
    return importlib.import_module(path.stem)


def build_run(name: str, arguments: Sequence[str], about: str = "") -> tuple[Run[Any, Any], Origin]:
    """Call a recipe with its own options and apply the overrides of the run's scalars.

    Args:
        name: of the catalogue, or ``module:function``.
        arguments: the words of the command line after the name.
        about: lines of help on options that are not the run's, shown after the recipe's own.

    Raises:
        InputError: for an unknown recipe or field, an ill-typed value, or one that the run refuses.
    """
    recipe, dotted = find_recipe(name)
    verb = f"train {name}"
    try:
        default, rest = parse_known(recipe, arguments, verb)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not isinstance(default, Run):
        raise InputError(f"{name} returned {type(default).__name__}, a recipe returns a Run")
    start, rest = parse_known(_Start, rest, verb)
    if start.init_from is not None:
        default = replace(default, task=_starting_from(default.task, start.init_from, name))
    if start.batch_growth is not None:
        first, *others = default.stages
        default = replace(default, stages=(*grown(first, read_growth(start.batch_growth)), *others))
    kinds: Any = Run[type(default.task), type(default.optimizer)]  # type: ignore[misc]
    run = parse(kinds, rest, verb, description=described(recipe) + about, default=default)
    recipe_name = name if name in RECIPES else dotted.rpartition(":")[2].replace("_", "-")
    return run, Origin(recipe=dotted, recipe_name=recipe_name, overrides=tuple(arguments))


@dataclass(frozen=True)
class _Start:
    init_from: str | None = None
    batch_growth: str | None = None


def _starting_from(task: Any, folder: str, name: str) -> Any:
    """Return the task with the weights and the sizes of a Hugging Face folder."""
    take = getattr(task, "starting_from", None)
    if take is None:
        raise InputError(f"--init-from is {folder}, but the task of {name} cannot start from another model")
    return take(folder)


def described(recipe: Callable[..., Any]) -> str:
    """Return a function's docstring and its options, for a help."""
    lines = [inspect.cleandoc(recipe.__doc__ or "")]
    for parameter in inspect.signature(recipe).parameters.values():
        kind = parameter.annotation
        shown = "|".join(map(_shown, get_args(kind) or (kind,)))
        lines.append(f"--{parameter.name.replace('_', '-')} {shown} (default: {parameter.default})")
    return "\n".join(lines)


def _shown(kind: Any) -> str:
    """Return a type as INT or NONE, a word that is allowed as it is."""
    if isinstance(kind, type):
        return "NONE" if kind is type(None) else kind.__name__.upper()
    return str(kind)


def promise(name: str) -> str:
    """Return the first line of a recipe's docstring."""
    return promised(find_recipe(name)[0])


def promised(function: Callable[..., Any]) -> str:
    """Return the first line of a function's docstring."""
    return inspect.cleandoc(function.__doc__ or "").partition("\n")[0]
