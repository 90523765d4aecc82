"""The fields of the page: read into an order, and filled from a recipe."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attnctl.errors import RecipeError, SettingError
from attnctl.recipes import Recipe

from .controls import HIDDEN, read_parameters, show_parameters
from .drawing import Order
from .intake import read_recipe
from .job import Maps
from .settings import StudioSettings

DEFAULT_STEPS = 25
DEFAULT_GUIDANCE = 5.0
MAPS: tuple[Maps, ...] = ("by step", "whole run", "off")


@dataclass(frozen=True, slots=True)
class Form:
    """What stands in the fields, in their order on the page.

    Attributes:
        prompt: What the picture shows.
        negative: What it should not show.
        model: One of those offered.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance; a text where it may be left to the model,
            since an empty field for numbers turns into 0 in the browser.
        seed: Of the first picture.
        is_new_seed: Whether another seed is drawn for each run.
        count: Pictures.
        size: ``WxH``; empty for the model's own.
        scheduler: Class of a scheduler; empty for the model's own.
        stack: ``{"techniques": [{"name", "on", "parameters"}]}``, as the stack shows it.
        compare: Whether to make the plain twins.
        maps: How attention maps are kept.
    """

    prompt: str
    negative: str = ""
    model: str = "shapes"
    steps: int | float | None = DEFAULT_STEPS
    guidance: float | str | None = DEFAULT_GUIDANCE
    seed: int | float | None = 0
    is_new_seed: bool = False
    count: int | float = 1
    size: str = ""
    scheduler: str = ""
    stack: Any = None
    compare: bool = True
    maps: str = "by step"

    def order(self, settings: StudioSettings) -> Order:
        """Check everything, and draw a seed if one is wanted.

        Raises:
            AttnctlError: saying what is wrong.
        """
        seed = whole(self.seed)
        if self.is_new_seed or seed is None:
            seed = secrets.randbelow(2**32)
        values: dict[str, Any] = {
            "model": self.model,
            "prompt": self.prompt,
            "negative": self.negative or None,
            "seed": seed,
            "count": whole(self.count),
            "steps": whole(self.steps),
            "guidance": _number(self.guidance),
            "size": (self.size or "").strip() or None,
            "scheduler": self.scheduler or None,
            "techniques": read_stack(self.stack),
        }
        given = {name: value for name, value in values.items() if value is not None}
        recipe = read_recipe(given, settings.models, settings.limits)
        chosen: list[Maps] = [known for known in MAPS if known == self.maps]
        return Order(recipe, self.compare is True, (*chosen, *MAPS)[0])

    @classmethod
    def of(cls, recipe: Recipe, *, compare: bool, maps: str) -> Form:
        """Fill the fields; what a recipe leaves open is as on an empty page."""
        return cls(
            prompt=str(recipe.prompt),
            negative=recipe.negative or "",
            model=recipe.model,
            steps=recipe.steps or DEFAULT_STEPS,
            guidance=DEFAULT_GUIDANCE if recipe.guidance is None else recipe.guidance,
            seed=recipe.seed or 0,
            is_new_seed=False,
            count=recipe.count,
            size=recipe.size or "",
            scheduler=recipe.scheduler or "",
            stack=show_stack(recipe),
            compare=compare,
            maps=maps,
        )


def read_stack(stack: Any) -> list[dict[str, Any]]:
    """Read the techniques that are switched on.

    Raises:
        RecipeError: this is no stack.
        SettingError: a control holds what it cannot.
    """
    return [
        {name: values} for name, values in (read_card(card) for card in cards_of(stack, on=True))
    ]


def cards_of(stack: Any, *, on: bool = False) -> list[dict[str, Any]]:
    """List the cards of a stack; ``on``: only those that are switched on."""
    cards = stack.get("techniques", []) if isinstance(stack, Mapping) else []
    if not isinstance(cards, list) or not all(isinstance(card, dict) for card in cards):
        raise RecipeError("this is no stack of techniques")
    return [card for card in cards if not on or card.get("on", True)]


def read_card(card: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Read name and parameters of one card.

    Raises:
        SettingError: a control holds what it cannot, or there is no such technique.
    """
    name, shown = str(card.get("name", "")), card.get("parameters") or {}
    if not isinstance(shown, Mapping):
        raise RecipeError(f"{name}: parameters must be names and values")
    return name, read_parameters(name, {str(key): value for key, value in shown.items()})


def show_stack(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe's techniques as cards; maps are the page's own business."""
    cards = [
        {
            "name": entry.name,
            "on": True,
            "parameters": show_parameters(entry.name, entry.parameters),
        }
        for entry in recipe.techniques
        if entry.name not in HIDDEN
    ]
    return {"techniques": cards}


def whole(number: int | float | None) -> int | float | None:
    """Make ``5.0`` five; anything else is left for the recipe to judge."""
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number


def _number(text: float | str | None) -> float | None:
    """Read a number that may be left out.

    Raises:
        SettingError: it is none.
    """
    if not isinstance(text, str):
        return text
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise SettingError(
            f"guidance {text!r:.50} is no number; leave it empty, or write 5"
        ) from None
