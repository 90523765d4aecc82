"""The greedy search: in each round, every head beside those that were chosen before."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attnctl.bench.machine import model_record
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.functions import name_of_function
from attnctl.head_layers import Structure
from attnctl.headhunter.objectives import Objective, find_objective, scores_of
from attnctl.headhunter.pool import Candidate, candidates, sites_of
from attnctl.headhunter.prompts import SeededPrompt, as_prompts
from attnctl.headhunter.results import save_results
from attnctl.headhunter.scores import Scores
from attnctl.headhunter.settings import HuntSettings
from attnctl.headhunter.team import Team
from attnctl.heads import ChosenHead, HeadSet
from attnctl.imaging import versions
from attnctl.pipelines.fitting import check  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    Job,
    OnStep,
    draw,
)

RoundScores = dict[Candidate, list[float]]


@dataclass(frozen=True, slots=True)
class Hunted:
    """What a search has found.

    Attributes:
        heads: The heads, best of the first round first.
        rounds: For each round, the scores of every candidate, one a prompt.
        files: Where everything lies, by name.
    """

    heads: HeadSet
    rounds: list[RoundScores]
    files: dict[str, Path]


def search(
    pipe: Any,
    objective: str | Objective,
    prompts: Sequence[Any],
    out: str | Path,
    settings: HuntSettings | None = None,
    *,
    resume: bool = False,
    plot: bool = True,
) -> Hunted:
    """Find the heads whose weakening serves an objective best.

    Every score is written down at once, so a search may be killed at any time and goes on with
    ``resume=True`` to the same result. Under ``accelerate launch`` the processes share the work.

    Args:
        pipe: A text-to-image pipeline.
        objective: ``"shapes"``, ``"clip:FOLDER"``, ``"package.module:function"``, or a function
            from pictures and prompts to one number each, more is better.
        prompts: Texts, or mappings with ``prompt`` and ``seed``; the seed of a text is its place.
        out: Folder for scores and results; the same for all processes.
        settings: How to search.
        resume: Go on with a search that was stopped.
        plot: Also draw the scores as a heat map (needs matplotlib).

    Raises:
        SettingError: a setting cannot be used, or the folder holds another search.
        UnsupportedModelError: the pipeline cannot be searched.

    Source: arXiv 2506.10978 (HeadHunter).
    """
    hunt = HeadHunt(pipe, objective, prompts, out, settings, resume=resume, plot=plot)
    return hunt.run()


class HeadHunt:
    """A search that is ready to run: everything is checked, nothing is written yet.

    Arguments as for :func:`search`.
    """

    def __init__(
        self,
        pipe: Any,
        objective: str | Objective,
        prompts: Sequence[Any],
        out: str | Path,
        settings: HuntSettings | None = None,
        *,
        resume: bool = False,
        plot: bool = True,
    ) -> None:
        self._pipe, self._plot = pipe, plot
        self.settings = _with_guidance(settings or HuntSettings(), pipe)
        self.prompts = as_prompts(prompts)
        texts = [prompt.text for prompt in self.prompts]
        sites = sites_of(pipe)
        self._structure = Structure.of(sites)
        self.pool = candidates(sites, self.settings.layers)
        self._check(texts, plot)
        self.objective = name_of_function(objective)
        self._objective = (
            find_objective(objective, texts, pipe.device)
            if isinstance(objective, str)
            else objective
        )
        self.team = Team.join()
        self._run = self._record()
        self._scores = Scores(Path(out), self._run, self.team.index)
        self._scores.check(resume=resume)
        self._out = Path(out)

    @property
    def total_steps(self) -> int:
        """Denoising steps of all pictures that fall to this process."""
        sizes = [len(self.pool) - r * self.settings.per_round for r in range(self.settings.rounds)]
        heads = sum(len(self.team.share(range(size))) for size in sizes)
        return heads * len(self.prompts) * self.settings.steps

    def run(
        self,
        *,
        on_step: OnStep | None = None,
        say: Callable[[str], None] = lambda _text: None,
    ) -> Hunted:
        """Search, and write the results.

        Args:
            on_step: Called after each denoising step with the number of pictures moved on.
            say: Told about every head that was tried.
        """
        self.team.wait()  # nobody may look for an older search once one has begun to write
        if self.team.is_first:
            self._scores.save_run()
        self.team.wait()
        self._scores.open()
        rounds: list[RoundScores] = []
        chosen: list[tuple[Candidate, float]] = []
        for number in range(1, self.settings.rounds + 1):
            taken = [candidate for candidate, _ in chosen]
            left = [candidate for candidate in self.pool if candidate not in taken]
            self._try_all(number, taken, left, on_step, say)
            self.team.wait()
            rounds.append(self._scores.whole_round(number, left, range(len(self.prompts))))
            chosen += best(rounds[-1], self.settings.per_round)
        heads = self._head_set(chosen)
        files: dict[str, Path] = {}
        if self.team.is_first:
            files = save_results(self._out, self._run, heads, rounds, plot=self._plot)
        self.team.wait()
        return Hunted(heads, rounds, files)

    def _try_all(
        self,
        number: int,
        taken: Sequence[Candidate],
        left: Sequence[Candidate],
        on_step: OnStep | None,
        say: Callable[[str], None],
    ) -> None:
        mine = self.team.share(left)
        top: tuple[float, Candidate] | None = None
        for place, candidate in enumerate(mine, 1):
            scores = self._try(number, taken, candidate, on_step)
            mean = math.fsum(scores) / len(scores)
            top = (mean, candidate) if top is None or mean > top[0] else top
            say(
                f"round {number} of {self.settings.rounds}: head {place} of {len(mine)}"
                f"{' of this process' if self.team.count > 1 else ''}, {candidate} scores "
                f"{mean:.4g}; best so far {top[1]} ({top[0]:.4g})"
            )

    def _try(
        self,
        number: int,
        taken: Sequence[Candidate],
        candidate: Candidate,
        on_step: OnStep | None,
    ) -> list[float]:
        """Score one more head, batch by batch; a batch that is not whole is made again."""
        size, count = self.settings.batch_size, len(self.prompts)
        scores: list[float] = []
        for start in range(0, count, size):
            places = range(start, min(start + size, count))
            found = self._scores.of(number, candidate, places)
            if found is None:
                found = self._score([*taken, candidate], [self.prompts[i] for i in places], on_step)
                self._scores.add(number, candidate, places, found)
            elif on_step is not None:
                on_step(len(places) * self.settings.steps)
            scores += found
        return scores

    def _score(
        self,
        heads: Sequence[Candidate],
        prompts: Sequence[SeededPrompt],
        on_step: OnStep | None,
    ) -> list[float]:
        chosen = HeadSet.parse([(head.layer, head.head) for head in heads])
        recipe = self.settings.recipe(prompts[0].text, chosen)
        jobs = [Job(prompt.text, prompt.seed) for prompt in prompts]
        drawn = draw(self._pipe, recipe, batch_size=len(jobs), jobs=jobs, on_step=on_step)
        images = [picture.image for picture in drawn]
        return scores_of(self._objective, images, [prompt.text for prompt in prompts])

    def _check(self, texts: Sequence[str], plot: bool) -> None:
        """Refuse what would fail after the first picture, or at the end."""
        wanted = self.settings.rounds * self.settings.per_round
        if wanted > len(self.pool):
            raise SettingError(
                f"--rounds {self.settings.rounds} times --per-round {self.settings.per_round} is "
                f"more than the {len(self.pool)} heads to choose from; give less, or more --layers"
            )
        if "num_frames" in inspect.signature(self._pipe.__call__).parameters:
            raise UnsupportedModelError(
                f"{type(self._pipe).__name__} makes videos; heads are searched with pipelines "
                "from text to image"
            )
        if plot:
            _check_plots()
        first = HeadSet.parse([(self.pool[0].layer, self.pool[0].head)])
        check(self._pipe, self.settings.recipe(texts[0], first))

    def _head_set(self, chosen: Sequence[tuple[Candidate, float]]) -> HeadSet:
        settings = self.settings
        return HeadSet(
            model=settings.model,
            structure=self._structure,
            objective=self.objective,
            scale=settings.scale,
            strength=settings.strength,
            target=settings.target,
            form=settings.form,
            steps=settings.steps,
            guidance=settings.guidance,
            seeds=tuple(prompt.seed for prompt in self.prompts),
            heads=tuple(
                ChosenHead(layer=one.layer, path=one.path, head=one.head, score=score)
                for one, score in chosen
            ),
        )

    def _record(self) -> dict[str, Any]:
        """Everything that decides about the scores."""
        return {
            "objective": self.objective,
            "settings": asdict(self.settings),
            "prompts": [[prompt.text, prompt.seed] for prompt in self.prompts],
            "model": model_record(self._pipe),
            "versions": versions(),
        }


def best(scores: Mapping[Candidate, Sequence[float]], count: int) -> list[tuple[Candidate, float]]:
    """The heads with the highest mean scores, best first; of equal ones the earlier head."""
    means = {candidate: math.fsum(all_) / len(all_) for candidate, all_ in scores.items()}
    ordered = sorted(means, key=lambda candidate: (-means[candidate], candidate))
    return [(candidate, means[candidate]) for candidate in ordered[:count]]


def _with_guidance(settings: HuntSettings, pipe: Any) -> HuntSettings:
    """Choose the guidance that the settings leave open."""
    if settings.guidance is not None:
        return settings
    parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
    if parameter is None:
        return settings
    denoiser = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    is_distilled = bool(getattr(getattr(denoiser, "config", None), "guidance_embeds", False))
    return replace(settings, guidance=float(parameter.default) if is_distilled else 1.0)


def _check_plots() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise SettingError(
            "the heat map needs matplotlib: pip install 'attnctl[plots]', or leave it out with "
            "--no-plot"
        )
