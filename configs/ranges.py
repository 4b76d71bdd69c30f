"""Checks of a configuration's values: ValueError beginning with the name of the field."""


def require(fits: bool, name: str, value: object, wanted: str) -> None:
    """Raises unless it fits."""
    if not fits:
        raise ValueError(f"{name} = {value!r} is out of range, expected {wanted}")


def at_least(low: float, config: object, *names: str) -> None:
    """Raises unless the fields are at least `low`."""
    for name in names:
        require(getattr(config, name) >= low, name, getattr(config, name), f"at least {low}")


def share(config: object, *names: str) -> None:
    """Raises unless the fields are shares."""
    for name in names:
        require(0 <= getattr(config, name) <= 1, name, getattr(config, name), "a share from 0 to 1")


def above_zero(config: object, *names: str) -> None:
    """Raises unless the fields are above 0."""
    for name in names:
        require(getattr(config, name) > 0, name, getattr(config, name), "above 0")
