"""Numbers as people read them."""


def milliseconds(value: float) -> str:
    """1234 ms as 1.23 s, 0.0123 ms as 12.3 µs: three digits."""
    for factor, unit in ((1e-3, "s"), (1.0, "ms"), (1e3, "µs")):
        if value * factor >= 1 or unit == "µs":
            return f"{digits(value * factor)} {unit}"
    raise AssertionError


def size(value: float) -> str:
    """Bytes, in powers of 1024."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{digits(value / 1024**power)} {unit}"
    return f"{digits(value)} B"


def rate(value: float, unit: str) -> str:
    """12.3 G with the unit."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{digits(value / 10**power)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def times(value: float) -> str:
    """A ratio."""
    return f"{digits(value)}×"


def percent(share: float) -> str:
    """A share of 1."""
    return f"{digits(100 * share)} %" if share < 0.1 else f"{100 * share:.0f} %"


def tick(value: float) -> str:
    """A number of an axis, short."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power and value % (10**power / 10) == 0:
            return f"{value / 10**power:g}{prefix}"
    return f"{value:.6g}"


def short(text: str) -> str:
    """10.0 ms as 10 ms."""
    number, _, unit = text.partition(" ")
    number = number.rstrip("0").removesuffix(".") if "." in number else number
    return f"{number} {unit}".strip()


def digits(value: float) -> str:
    """Three significant digits, never in scientific notation."""
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value >= 1e-3 else f"{value:.2g}"
