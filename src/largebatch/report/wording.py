"""Numbers as people read them."""

import math


def count(value: float) -> str:
    """1,234,567; a dash for what is not known."""
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def rounded_count(value: float) -> str:
    """4.4 million; below ten thousand in full."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value / 1e3:.3g} thousand" if value >= 1e4 else count(value)


def significant(value: float, digits: int = 4) -> str:
    """0.0008839, 12,350: so many digits, a dash for what is not known."""
    if not math.isfinite(value):
        return "–"
    if value != 0 and (abs(value) < 1e-4 or abs(value) >= 1e9):
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 10**digits:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{value:.{digits}g}"


def fixed(value: float, decimals: int) -> str:
    """5.420: so many decimals, a dash for what is not known."""
    return f"{value:.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """18.4 %, from a share."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """4 min 58 s, 2 h 3 min, 3 d 4 h."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, large, part, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"


def times(value: float) -> str:
    """4.5 times."""
    return f"{value:.2g} times" if value < 100 else f"{value:,.0f} times"


def plural(number: int, one: str, many: str | None = None) -> str:
    """1 stage, 2 stages."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(items: list[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
