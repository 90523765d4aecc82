"""How an object is composed into a scene: settings, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from attnctl.errors import SettingError, nearest
from attnctl.settings import check_number, check_whole


@dataclass(frozen=True, slots=True)
class Domain:
    """What the authors use for scenes of one style; the object is a photograph.

    Attributes:
        guidance: Guidance scale.
        infuse: Share of the steps with infusion, ``tau_a``.
        paste: Share of the steps behind which the object is pasted as it is, ``tau_c``.
        from_object: The object's cells start from its own inverted noise.
    """

    guidance: float
    infuse: float
    paste: float
    from_object: bool = True


DOMAINS = {
    "same": Domain(guidance=2.0, infuse=0.3, paste=0.1, from_object=False),
    "painting": Domain(guidance=2.5, infuse=0.3, paste=0.2),
    "cartoon": Domain(guidance=3.0, infuse=0.4, paste=0.3),
    "sketch": Domain(guidance=2.5, infuse=0.6, paste=0.3),
}
"""By style of the scene. Source: scripts of the official code of arXiv 2403.05053."""


@dataclass(frozen=True, slots=True)
class ComposeSettings:
    """How to compose; ``None`` leaves a choice to :attr:`domain`.

    Attributes:
        domain: Style of the scene: ``"same"`` as the object's, ``"painting"``, ``"cartoon"`` or
            ``"sketch"``.
        guidance: Guidance scale.
        infuse: Share of the steps with infusion, in [0, 1].
        paste: Share of the steps behind which the whole picture is the scene with the object's own
            latents, in [0, 1].
        blend: Share of the steps behind which the scene is written outside the box, in [0, 1]; in
            the remaining ones the whole picture is free, so that it becomes one.
        confine: The object's words are seen where the object is, and nowhere else.
        steps: Steps of the sampler.
        seed: Of the noise inside the box.
        negative: What the picture should not show.
        refinements: Fixed-point iterations of each step of the inversion; ``None``: as many as an
            accurate inversion takes.
    """

    domain: str = "same"
    guidance: float | None = None
    infuse: float | None = None
    paste: float | None = None
    blend: float = 0.8
    confine: bool = True
    steps: int = 20
    seed: int = 0
    negative: str | None = None
    refinements: int | None = None

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise SettingError(
                f"compose: unknown domain {self.domain!r}; {nearest(self.domain, DOMAINS)}"
            )
        for name, value in (("infuse", self.infuse), ("paste", self.paste), ("blend", self.blend)):
            if value is not None:
                check_number("compose", name, value, at_least=0, at_most=1)
        if self.guidance is not None:
            check_number("compose", "guidance", self.guidance, at_least=0)
        check_whole("compose", "steps", self.steps, at_least=1)
        check_whole("compose", "seed", self.seed, at_least=0)
        if self.refinements is not None:
            check_whole("compose", "refinements", self.refinements, at_least=0)
