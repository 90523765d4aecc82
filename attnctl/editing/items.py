"""Items of the user's own batch that play a part: the source of an edit, and its targets."""

from typing import Any

from attnctl.errors import SettingError


def item_number(technique: str, name: str, value: Any) -> int:
    """Check the number of an item, from 0.

    Raises:
        SettingError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise SettingError(
            f"{technique}: {name}={value!r} must be the number of a picture of the batch, from 0"
        )
    return value


def item_numbers(technique: str, name: str, value: Any) -> tuple[int, ...]:
    """Read one item or several different ones; ``"1+2"`` is (1, 2).

    Raises:
        SettingError: a value is no number of an item, or stands there twice.
    """
    listed: list[Any] = list(value) if isinstance(value, list | tuple) else [value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, str):
        listed = [int(part) if part.strip().isdigit() else part for part in value.split("+")]
    numbers = tuple(item_number(technique, name, one) for one in listed)
    if not numbers or len(set(numbers)) < len(numbers):
        raise SettingError(f"{technique}: {name}={value!r} must name different pictures")
    return numbers


def check_items(technique: str, items: int, **named: int | tuple[int, ...]) -> None:
    """Refuse a run that has not got the items that a technique names.

    Args:
        technique: Its name.
        items: Pictures of the run.
        named: Numbers of items, by the setting that names them.

    Raises:
        SettingError: saying what to call the pipeline with.
    """
    for name, value in named.items():
        numbers = value if isinstance(value, tuple) else (value,)
        beyond = [number for number in numbers if number >= items]
        if beyond:
            have = "one picture" if items == 1 else f"{items} pictures"
            raise SettingError(
                f"{technique}: {name}={beyond[0]} is not in this run, which makes {have} (numbers "
                f"0 to {items - 1}); call the pipeline with one prompt for each, "
                "prompt=[source, target], and equal latents"
            )
