"""The laboratory's measurements: bounds held, slopes, and where layerwise rules win.

    python reports/convergence_study.py reports/convergence

writes laboratory.json, regimes.svg and the tables of README.md there. Six minutes on a core.
"""

import json
import math
import sys
from collections.abc import Callable
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import collect
from largebatch.advise.bounds import lars_over_sgd
from largebatch.advise.laboratory import (
    RULES,
    Problems,
    RuleName,
    bound,
    designed_problems,
    own_lr,
    random_problems,
    run,
    slopes,
)
from largebatch.train.run_record import cpu_model, versions

STEPS = (16, 64, 256, 1024, 4096)
PROBLEMS = 100
SPREADS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
GRADIENTS = (1, 4, 16, 64, 256)
NOISES = (0.3, 1, 3, 10, 30)
REGIME_STEPS, REGIME_PROBLEMS = 256, 12
MULTIPLES = tuple(2.0**power for power in range(-4, 8))
NAMES: dict[RuleName, str] = {"sgd": "SGD", "lars": "LARS", "lamb-sign": "LAMB, β₂ = 0", "lamb": "LAMB, β₂ = 0.9"}
OF: dict[RuleName, str] = {
    "sgd": "mean E ‖∇f‖²",
    "lars": "mean E Σ ‖∇ᵢf‖",
    "lamb-sign": "mean E Σ ‖∇ᵢf‖₁ / √dᵢ",
    "lamb": "mean E Σ ‖∇ᵢf‖² / √dᵢ",
}
POWERS: dict[RuleName, float] = {"sgd": -1.0, "lars": -0.5, "lamb-sign": -0.5, "lamb": -0.5}


def against_bounds() -> dict[str, Any]:
    """Run every rule on random problems at its own rate with b = T."""
    problems = random_problems(PROBLEMS, 0)
    found: dict[str, Any] = {}
    for rule in RULES:
        measured, shares = [], []
        for steps in STEPS:
            constants = problems.constants(steps)
            lrs = np.array([own_lr(rule, of, steps, problems.phi) for of in constants])
            limits = [
                bound(rule, of, steps, steps, lr, problems.phi) for of, lr in zip(constants, lrs.tolist(), strict=True)
            ]
            measured.append(run(problems, rule, steps, steps, lrs).measured)
            shares.append(measured[-1] / np.array(limits))
        pairs = []
        for first in range(len(STEPS) - 1):
            slope = slopes(STEPS[first : first + 2], np.array(measured[first : first + 2]))
            pairs.append({"steps": STEPS[first : first + 2], "slope": slope.mean, "interval": slope.interval})
        found[rule] = {
            "above": int(sum((share > 1).sum() for share in shares)),
            "largest_share": [float(share.max()) for share in shares],
            "median_share": [float(np.median(share)) for share in shares],
            "slopes": pairs,
        }
        print(rule, found[rule], flush=True)
    return found


def regime(problems: Problems) -> dict[str, float]:
    """Return LARS' and LAMB's last f - f* over SGD's, rates tuned and falling to zero, and the ratio of the bounds."""
    steps, best = REGIME_STEPS, {}
    constants = problems.constants(steps)
    for rule in ("sgd", "lars", "lamb"):
        own = np.array([own_lr(rule, of, steps, problems.phi) for of in constants])
        ends = [run(problems, rule, steps, steps, own * k, decays=True, repetitions=2).gaps for k in MULTIPLES]
        best[rule] = np.log(np.min(ends, axis=0))
    starts = problems.gradients(problems.starts[:, None, :])[:, 0]
    norms = np.sqrt(np.add.reduceat(starts**2, problems.edges, axis=1))
    told = [math.log(lars_over_sgd(of, n.tolist(), steps, steps)) for of, n in zip(constants, norms, strict=True)]
    return {
        "lars": float(np.exp(np.mean(best["lars"] - best["sgd"]))),
        "lamb": float(np.exp(np.mean(best["lamb"] - best["sgd"]))),
        "bounds": math.exp(float(np.mean(told))),
    }


def regimes() -> dict[str, Any]:
    """Return the two planes of the figure: curvature by gradient, and curvature by noise."""

    def plane(rows: tuple[float, ...], make: Callable[[float, float], Problems]) -> list[list[dict[str, float]]]:
        found = []
        for row in rows:
            found.append([regime(make(spread, row)) for spread in SPREADS])
            print(row, [f"{cell['lars']:.3g}" for cell in found[-1]], flush=True)
        return found

    def by_gradient(curvature: float, gradient: float) -> Problems:
        return designed_problems(REGIME_PROBLEMS, 0, curvature_spread=curvature, gradient_spread=gradient)

    def by_noise(curvature: float, noise: float) -> Problems:
        return designed_problems(REGIME_PROBLEMS, 0, curvature_spread=curvature, gradient_spread=1, noise=noise)

    return {"gradient": plane(GRADIENTS, by_gradient), "noise": plane(NOISES, by_noise)}


# ---- what is committed ------------------------------------------------------------------------------------------


def bounds_table(found: dict[str, Any]) -> str:
    """Return how near each rule came to its bound."""
    rows = [
        "| rule | what is bounded | points above | largest share of the bound, at T = "
        + ", ".join(map(str, STEPS))
        + " |"
    ]
    rows.append("| --- | --- | --- | --- |")
    for rule in RULES:
        shares = ", ".join(f"{share:.3f}" for share in found[rule]["largest_share"])
        rows.append(f"| {NAMES[rule]} | {OF[rule]} | {found[rule]['above']} of {PROBLEMS * len(STEPS)} | {shares} |")
    return "\n".join(rows)


def slopes_table(found: dict[str, Any]) -> str:
    """Return the powers of T."""
    pairs = [f"{a} to {b}" for a, b in pairwise(STEPS)]
    rows = ["| rule | theory | " + " | ".join(f"T {pair}" for pair in pairs) + " |"]
    rows.append("| --- | --- |" + " --- |" * len(pairs))
    for rule in RULES:
        cells = [
            f"{pair['slope']:.3f} ({pair['interval'][0]:.3f} to {pair['interval'][1]:.3f})"
            for pair in found[rule]["slopes"]
        ]
        sign = "at most " if rule == "lamb" else ""
        rows.append(f"| {NAMES[rule]} | {sign}{POWERS[rule]} | " + " | ".join(cells) + " |")
    return "\n".join(rows).replace("-0.", "−0.").replace("-1.", "−1.")


CELL, LEFT, TOP, GAP = 46, 70, 64, 40
BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def colour(ratio: float) -> str:
    """Return blue where the ratio is below 1, orange where it is above, white at 1; full at a factor of 100."""
    depth = min(abs(math.log10(ratio)) / 2, 1.0)
    full = BLUE if ratio < 1 else ORANGE
    return "#" + "".join(f"{round(255 - depth * (255 - channel)):02x}" for channel in full)


def figure(found: dict[str, Any]) -> str:
    """Return regimes.svg: four maps, LARS and LAMB over the two planes."""
    wide, high = LEFT + CELL * len(SPREADS) + GAP, TOP + CELL * len(GRADIENTS) + 54
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * wide} {2 * high + 20}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{2 * wide}" height="{2 * high + 20}" fill="#ffffff"/>',
    ]
    planes = (
        ("gradient", GRADIENTS, "spread of the layers' gradients, noise 1"),
        ("noise", NOISES, "noise, gradients alike"),
    )
    for column, (plane, values, label) in enumerate(planes):
        for row, rule in enumerate(("lars", "lamb")):
            x0, y0 = column * wide + LEFT, row * high + TOP
            title = f"{rule.upper()} over SGD, by {label}"
            parts.append(f'<text x="{x0}" y="{y0 - 12}" font-weight="bold">{escape(title)}</text>')
            for i, cells in enumerate(found[plane]):
                y = y0 + CELL * (len(values) - 1 - i)
                parts.append(f'<text x="{x0 - 8}" y="{y + 27}" text-anchor="end">{values[i]:g}</text>')
                for j, cell in enumerate(cells):
                    ratio, x = cell[rule], x0 + CELL * j
                    ink = "#ffffff" if abs(math.log10(ratio)) > 1.2 else "#222222"
                    edge = ' stroke="#222222" stroke-width="2"' if cell["bounds"] < 1 else ""
                    parts += [
                        f'<rect x="{x + 1}" y="{y + 1}" width="{CELL - 3}" height="{CELL - 3}"',
                        f'fill="{colour(ratio)}"{edge}/>',
                        f'<text x="{x + CELL / 2}" y="{y + 27}" text-anchor="middle" fill="{ink}">{ratio:.2g}</text>',
                    ]
            for j, spread in enumerate(SPREADS):
                parts.append(
                    f'<text x="{x0 + CELL * (j + 0.5)}" y="{y0 + CELL * len(values) + 16}" '
                    f'text-anchor="middle">{spread:g}</text>'
                )
            parts.append(
                f'<text x="{x0}" y="{y0 + CELL * len(values) + 34}">largest curvature of a layer over the least</text>'
            )
    parts.append(
        f'<text x="{LEFT}" y="{2 * high + 8}">Last f − f* over that of SGD: blue below 1, the layerwise rule wins; '
        "framed where the bounds say that it should.</text>"
    )
    return "\n".join([*parts, "</svg>", ""])


def with_tables(page: str, found: dict[str, Any]) -> str:
    """Return a page with both tables."""
    for mark, text in (("bounds", bounds_table(found["rules"])), ("slopes", slopes_table(found["rules"]))):
        page = collect.insert(page, text, mark)
    return page


def main(out: Path) -> None:
    """Measure and write."""
    found = {"rules": against_bounds(), "regimes": regimes(), "cpu": cpu_model(), "versions": versions()}
    (out / "laboratory.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "regimes.svg").write_text(figure(found["regimes"]), encoding="utf-8")
    page = out / "README.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
