"""vitgan doctor."""

from vitgan_kernels import doctor


def main(arguments: list[str]) -> int:
    """Prints what is installed and built here and whether it works; 1 where something that is promised does not."""
    return doctor.main(arguments, prog="vitgan doctor")
