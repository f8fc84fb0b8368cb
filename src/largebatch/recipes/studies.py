"""The comparisons of the paper, and those that it leaves open, as studies: small, for two cores, and in full.

In the small size the data are embedded, the digits or the corpus "pydocs", and a run takes seconds. In the full size
the data and the batches are the paper's. What the small ones found stands in reports/.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from largebatch.command_line import parse
from largebatch.errors import InputError
from largebatch.recipes.catalogue import described, find_function, promised
from largebatch.scaling import BERT_ROWS, RESNET50_ROWS, Rule
from largebatch.study.plan import Arm, Carried, Published, Study
from largebatch.study.space import Choices, Interval, Search, Space, grid, quasi_random

Size = Literal["small", "full"]

STUDIES: dict[str, str] = {
    "lamb-batches": "largebatch.recipes.studies:lamb_batches",
    "lamb-lars": "largebatch.recipes.studies:lamb_lars",
    "adamw-large-batch": "largebatch.recipes.studies:adamw_large_batch",
    "image-optimizers": "largebatch.recipes.studies:image_optimizers",
    "lamb-variants": "largebatch.recipes.studies:lamb_variants",
    "mixed-batch": "largebatch.recipes.studies:mixed_batch",
    "scaling-rules": "largebatch.recipes.studies:scaling_rules",
}


def build_study(name: str, arguments: Sequence[str], about: str = "") -> Study:
    """Call a study's function with its own options.

    Args:
        name: of `STUDIES`, ``module:function`` or ``FILE.py:function``.
        arguments: the words of the command line after the name.
        about: lines of help on options that are not the study's, shown after its own.

    Raises:
        InputError: an unknown study or option, or a function that returns something else.
    """
    function, _ = find_function(name, STUDIES, "study")
    study = parse(function, arguments, f"study {name}", description=described(function) + about)
    if not isinstance(study, Study):
        raise InputError(f"{name} returned {type(study).__name__}, a study's function returns a Study")
    return study


def study_promise(name: str) -> str:
    """Return the first line of a study's docstring."""
    return promised(find_function(name, STUDIES, "study")[0])


# --- on text ----------------------------------------------------------------------------------------

_PRETRAINED: dict[str, Any] = {"score": "mlm_loss", "higher_is_better": False}
_BERT_RATES = Interval(3e-4, 1e-2)
_BERT_BATCHES = (64, 256, 1024)
_BERT_SAMPLES, _BERT_WARMUP_STEPS = 65_536, 16
_BERT_LARGE: Mapping[str, Any] = {
    "network": "large",
    "corpus": "corpora/books-and-wikipedia",
    "length": 128,
    "long_length": 512,
    "samples": 460_800_000,
    "long_samples": 51_200_000,
}
_F1 = (
    *((512, 91.752), (1024, 91.761), (2048, 91.946), (4096, 91.137)),
    *((8192, 91.263), (16_384, 91.345), (32_768, 91.475)),
)


def lamb_batches(size: Size = "small", corpus: str = "corpora/pydocs", trials: int = 8, seeds: int = 5) -> Study:
    """LAMB over the batch sizes, carried by the square-root rule with nothing tuned again: the paper's first table.

    Small: BERT of 2 layers, 65,536 sequences of 16 tokens at batch 64, 256 and 1,024; the rate is tuned at 64. Full:
    BERT-Large, 512 million sequences, batch 512 to 32,768, at the paper's rates. Status of the full size: not yet run.
    """
    if size == "full":
        arms = tuple(
            Arm(
                method="LAMB",
                batch=row.global_batch_samples,
                options={"batch": row.global_batch_samples, "lr_at_32": 5e-3 / 32},
            )
            for row in BERT_ROWS
        )
        # The paper's rows have one decay over both lengths, and 3,125 warm-up steps at every batch.
        return _lamb_batches(arms, {**_BERT_LARGE, "warmup_steps": 3125, "second_warmup": "one-decay"}, seeds)
    first, *others = _BERT_BATCHES
    search = quasi_random({"lr_at_32": _BERT_RATES}, trials)
    arms = (
        Arm(method="LAMB", batch=first, options={"batch": first}, search=search),
        *(
            Arm(method="LAMB", batch=batch, options={"batch": batch}, search=Carried(arm=f"LAMB, batch {first:,}"))
            for batch in others
        ),
    )
    return _lamb_batches(arms, {"corpus": corpus, "samples": _BERT_SAMPLES, "warmup_steps": _BERT_WARMUP_STEPS}, seeds)


def _lamb_batches(arms: tuple[Arm, ...], options: Mapping[str, Any], seeds: int) -> Study:
    return Study(
        name="lamb-batches",
        title="LAMB over batch sizes, nothing tuned again",
        question="Does the loss stay what it is when the batch grows, the rate by the square root of it, the warm-up's "
        "steps staying the same?",
        recipe="bert-study",
        options=options,
        arms=arms,
        seeds=seeds,
        published=tuple(Published("BERT-Large", f1, batch, "SQuAD F1") for batch, f1 in _F1),
        **_PRETRAINED,
    )


def adamw_large_batch(size: Size = "small", corpus: str = "corpora/pydocs", seeds: int = 5) -> Study:
    """AdamW at the large batch over rates and warm-ups, beside LAMB with as many trials.

    In the paper four of nine of AdamW's diverge at 16,384 and the best falls short; a tuned Adam does not (arXiv
    2102.06356). Small: batch 256 of BERT with 2 layers, four rates by three warm-ups for each. Full: BERT-Large at
    16,384. Status of the full size: not yet run.
    """
    warmups = Choices((0.05, 0.2, 0.4))
    batch = 256 if size == "small" else 16_384
    rates = {
        "AdamW": Choices((1e-4, 3e-4, 1e-3, 3e-3) if size == "small" else (5e-6, 1e-5, 2e-5, 5e-5)),
        "LAMB": Choices((3e-4, 1e-3, 3e-3, 1e-2) if size == "small" else (4e-5, 8e-5, 1.6e-4, 3.2e-4)),
    }
    options = {"corpus": corpus, "samples": _BERT_SAMPLES} if size == "small" else dict(_BERT_LARGE)
    return Study(
        name="adamw-large-batch",
        title=f"AdamW at batch {batch:,}, over rates and warm-ups",
        question="Does AdamW fail where LAMB does not, when both are tuned over as many rates and warm-ups?",
        recipe="bert-study",
        options={**options, "batch": batch},
        arms=tuple(
            Arm(
                method=name,
                options={"optimizer": name.lower()},
                search=grid({"lr_at_32": rates[name], "warmup_share": warmups}),
            )
            for name in ("LAMB", "AdamW")
        ),
        seeds=seeds,
        **_PRETRAINED,
    )


def mixed_batch(size: Size = "small", corpus: str = "corpora/pydocs", trials: int = 8, seeds: int = 5) -> Study:
    """The mixed batch with and without the second warm-up.

    Three ways to begin the second stage, with longer sequences and half the batch: warmed up from zero, as in the
    paper; at its peak at once; with the rest of one decay over both. Small: BERT with 2 layers, 32,768 sequences of 16
    tokens at 128, then 16,384 of 64 at 64. Full: BERT-Large, 65,536 then 32,768. Status of the full size: not yet run.
    """
    ways = {"warmed up again": "from-zero", "at its peak at once": "at-once", "one decay over both": "one-decay"}
    if size == "small":
        options: dict[str, Any] = {
            "corpus": corpus,
            "samples": 32_768,
            "batch": 128,
            "long_samples": 16_384,
            "long_batch": 64,
            "warmup_share": 0.1,
        }
        search = quasi_random({"lr_at_32": _BERT_RATES}, trials)
    else:
        options = {**_BERT_LARGE, "batch": 65_536, "long_batch": 32_768, "warmup_share": 0.2}
        search = quasi_random({"lr_at_32": Interval(5e-5, 5e-4)}, trials)
    return Study(
        name="mixed-batch",
        title="The second stage of a mixed batch, with and without a second warm-up",
        question="Does it help to warm the rate up again from zero when the sequences get longer?",
        recipe="bert-study",
        options=options,
        arms=tuple(Arm(method=name, options={"second_warmup": way}, search=search) for name, way in ways.items()),
        seeds=seeds,
        published=(Published("BERT-Large, 64K/32K, warmed up again", 90.584, 65_536, "SQuAD F1"),),
        **_PRETRAINED,
    )


# --- on images --------------------------------------------------------------------------------------

_JUDGED: dict[str, Any] = {"score": "top1_accuracy", "higher_is_better": True, "percent": True}
_DIGITS_BATCHES = (64, 256, 1438)
_IMAGE_SPACE: Space = {
    "lr": Interval(1e-3, 3.0),
    "weight_decay": Interval(1e-5, 1e-1),
    "warmup_share": Interval(0.0, 0.4, "linear"),
}
_RESNET_SPACES: Mapping[str, Space] = {
    "lamb": {"lr": Interval(5e-3, 0.1), "weight_decay": Interval(0.1, 3.0)},
    "lars": {"lr": Interval(2.0, 60.0), "weight_decay": Interval(1e-5, 1e-3)},
}


def lamb_lars(size: Size = "small", data: str = "", trials: int = 8, seeds: int = 5) -> Study:
    """LAMB and LARS over batch sizes, each tuned at each: the paper's comparison of its two rules.

    Small: LeNet on the digits at batch 64, 256 and 1,438, which is all of them. Full: ResNet-50 on ImageNet, batch 512
    to 32,768. Status of the full size: not yet run.
    """
    batches = _DIGITS_BATCHES if size == "small" else tuple(row.global_batch_samples for row in RESNET50_ROWS)
    names = {"LAMB": "lamb", "LARS": "lars"}
    return Study(
        name="lamb-lars",
        title="LAMB and LARS over batch sizes",
        question="Which of the two rules holds out longer as the batch grows?",
        recipe="digits" if size == "small" else "resnet50",
        options=_image_options(size, data),
        arms=tuple(
            Arm(
                method=name,
                batch=batch,
                options={"batch": batch, "optimizer": word, **_evaluated(size, batch)},
                search=quasi_random(_IMAGE_SPACE if size == "small" else _RESNET_SPACES[word], trials),
            )
            for name, word in names.items()
            for batch in batches
        ),
        seeds=seeds,
        target=0.8 if size == "small" else 0.75,
        **_JUDGED,
    )


def image_optimizers(size: Size = "small", data: str = "", trials: int = 16, seeds: int = 5) -> Study:
    """SGD, momentum, AdaGrad, Adam, AdamW, LARS and LAMB on images at a large batch, tuned over one space.

    Small: LeNet on the digits, all of them as one batch, 35 steps. Full: ResNet-50 on ImageNet at 16,384, where the
    paper's untuned others fall behind. Status of the full size: not yet run.
    """
    arms: dict[str, dict[str, Any]] = {
        "LAMB": {"optimizer": "lamb"},
        "LARS": {"optimizer": "lars"},
        "AdamW": {"optimizer": "adamw"},
        "Adam": {"optimizer": "adam"},
        "AdaGrad": {"optimizer": "adagrad"},
        "momentum": {"optimizer": "momentum"},
        "SGD": {"optimizer": "momentum", "momentum": 0.0},
    }
    batch = 1438 if size == "small" else 16_384
    space = _IMAGE_SPACE if size == "small" else {"lr": Interval(1e-4, 30.0), "weight_decay": Interval(1e-5, 3.0)}
    search = quasi_random(space, trials)
    return Study(
        name="image-optimizers",
        title=f"Seven optimizers on images at batch {batch:,}",
        question="Is LAMB ahead at a large batch when all are tuned over the same space with the same points?",
        recipe="digits" if size == "small" else "resnet50",
        options={"batch": batch, **_image_options(size, data), **_evaluated(size, batch)},
        arms=tuple(Arm(method=name, options=options, search=search) for name, options in arms.items()),
        seeds=seeds,
        published=()
        if size == "small"
        else (
            *(Published(name, value, 16_384) for name, value in (("LAMB", 0.7666), ("momentum", 0.7520))),
            *(Published(name, value, 16_384) for name, value in (("AdamW", 0.6727), ("Adam", 0.6604))),
            Published("AdaGrad", 0.5538, 16_384),
        ),
        **_JUDGED,
    )


def lamb_variants(size: Size = "small", data: str = "", trials: int = 8, seeds: int = 5) -> Study:
    """LAMB with and without bias correction, with three norms, and N- and NN-LAMB.

    Small: LeNet on the digits, all of them as one batch, 35 steps. Full: ResNet-50 on ImageNet at 16,384; there the
    norms differ by less than 0.1 % in the paper. Status of the full size: not yet run.
    """
    arms: dict[str, dict[str, Any]] = {
        "LAMB": {},
        "no bias correction": {"bias_correction": False},
        "norm 1": {"norm": "1"},
        "norm inf": {"norm": "inf"},
        "N-LAMB": {"nesterov": "first"},
        "NN-LAMB": {"nesterov": "both"},
    }
    batch = 1438 if size == "small" else 16_384
    search = quasi_random(_IMAGE_SPACE if size == "small" else _RESNET_SPACES["lamb"], trials)
    return Study(
        name="lamb-variants",
        title="Variants of LAMB",
        question="Do bias correction, the norm of the ratio or a look ahead matter?",
        recipe="digits" if size == "small" else "resnet50",
        options={"optimizer": "lamb", "batch": batch, **_image_options(size, data), **_evaluated(size, batch)},
        arms=tuple(Arm(method=name, options=options, search=search) for name, options in arms.items()),
        seeds=seeds,
        **_JUDGED,
    )


def scaling_rules(
    optimizer: Literal["lamb", "adamw"] = "lamb", data: str = "digits", trials: int = 8, seeds: int = 5
) -> Study:
    """The rate tuned at a small batch and carried to larger ones: unchanged, linearly, by the square root.

    The square root also with the betas carried (arXiv 2205.10287). LeNet on the digits, 35 epochs, tuned at batch 64,
    carried to 256 and 512; beside them both tuned again. There is no other size.
    """
    base, others = 64, (256, 512)
    space: Space = {"lr": Interval(1e-3, 0.3)}
    search: Search = quasi_random(space, trials)
    tuned = "tuned again"
    arms = [Arm(method=tuned, batch=base, options={"batch": base}, search=search)]
    arms += [Arm(method=tuned, batch=batch, options={"batch": batch}, search=search) for batch in others]
    rules: dict[str, Rule] = {"square root": "square-root", "linear": "linear", "unchanged": "none"}
    for name, rule in rules.items():
        for batch in others:
            factors = {"lr": {"square-root": (batch / base) ** 0.5, "linear": batch / base, "none": 1.0}[rule]}
            carried = Carried(arm=f"{tuned}, batch {base}", factors=factors)
            arms.append(Arm(method=name, batch=batch, options={"batch": batch}, search=carried))
            if rule == "square-root":
                options = {"batch": batch, "scale_betas_from": base}
                arms.append(Arm(method="square root, betas too", batch=batch, options=options, search=carried))
    return Study(
        name="scaling-rules" if optimizer == "lamb" else f"scaling-rules-{optimizer}",
        title=f"Scaling rules for {'LAMB' if optimizer == 'lamb' else 'AdamW'}",
        question="Which rule carries the rate from a small batch to a larger one, without tuning it again?",
        recipe="digits",
        options={"optimizer": optimizer, "data": data, "warmup_share": 0.1},
        arms=tuple(arms),
        reference="square root",
        seeds=seeds,
        notes=("The batch grows at the same number of samples, so that 512 has an eighth of the steps of 64.",),
        **_JUDGED,
    )


def _image_options(size: Size, data: str) -> dict[str, Any]:
    return {"data": data or ("digits" if size == "small" else "imagenet")}


def _evaluated(size: Size, batch: int) -> dict[str, Any]:
    """Return how often a run is judged: some ten times on its way."""
    images = 1438 if size == "small" else 1_281_167
    steps = images * (35 if size == "small" else 90) // batch
    return {"evaluate_every_steps": max(1, steps // 12)}
