"""The search for vital layers: every picture is made again without one layer, and compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import attnctl
from attnctl.bench.journal import Journal
from attnctl.bench.machine import model_record
from attnctl.bench.pictures import pixels_hash
from attnctl.errors import AttnctlError, SettingError, UnsupportedModelError
from attnctl.files import write_text
from attnctl.functions import name_of_function
from attnctl.head_layers import Structure
from attnctl.headhunter.pool import sites_of
from attnctl.headhunter.prompts import SeededPrompt, as_prompts
from attnctl.imaging import open_picture, save_png, versions
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    Job,
    OnStep,
    draw,
)
from attnctl.recipes import Recipe
from attnctl.settings import check_number
from attnctl.vital_layers.bypassed_blocks import BypassedBlocks
from attnctl.vital_layers.layers import VitalLayers, choose_layers
from attnctl.vital_layers.similarities import (
    Similarity,
    find_similarity,
)

LAYERS_FILE, SCORES_FILE = "vital-layers.yaml", "scores.json"
REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How vital layers are searched.

    Attributes:
        model: Bundled name, folder or hub id, as written into the set.
        top: So many layers are vital; by default 9 of 57, as in FLUX.1.
        threshold: Layers of at least this vitality are vital.
        steps: Denoising steps; 15 in the released code of Stable Flow.
        guidance: Classifier-free guidance; ``None`` is the pipeline's own.
        size: ``WxH`` in pixels; ``None``: the pipeline's.
        batch_size: Pictures made together; part of what decides about the last bits.

    Raises:
        SettingError: a value lies outside its range.
    """

    model: str = "shapes-mmdit"
    top: int | None = None
    threshold: float | None = None
    steps: int = 15
    guidance: float | None = None
    size: str | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.top is not None and self.threshold is not None:
            raise SettingError("--top and --threshold exclude each other; give one")
        if self.top is not None:
            check_number("vital-layers", "top", self.top, at_least=0)
        if self.threshold is not None:
            check_number("vital-layers", "threshold", self.threshold, at_least=-2, at_most=2)
        check_number("vital-layers", "batch_size", self.batch_size, at_least=1)
        self.recipe("a prompt")

    def recipe(self, prompt: str) -> Recipe:
        """What draws a picture.

        Raises:
            RecipeError: a setting cannot be used.
        """
        values = {
            "model": self.model,
            "prompt": prompt,
            "seed": 0,
            "steps": self.steps,
            "guidance": self.guidance,
            "size": self.size,
        }
        return Recipe.from_dict({k: v for k, v in values.items() if v is not None}, name="")


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found.

    Attributes:
        layers: The vital layers, with the vitality of all.
        similarities: For each layer, one similarity a prompt.
        files: Where everything lies, by name.
    """

    layers: VitalLayers
    similarities: list[list[float]]
    files: dict[str, Path]


def search(
    pipe: Any,
    similarity: str | Similarity,
    prompts: Sequence[Any],
    out: str | Path,
    settings: SearchSettings | None = None,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Found:
    """Find the layers whose absence changes pictures most.

    Every similarity is written down at once, so a search may be killed at any time and goes on
    with ``resume=True`` to the same result. It makes one picture a prompt, and one for each layer.

    Args:
        pipe: A text-to-image pipeline with joint attention (FLUX.1, SD3, SD3.5).
        similarity: A name as for :func:`~attnctl.vital_layers.similarities.find_similarity`, or a
            function from pictures and other pictures to one number a pair, 1 for equal ones.
        prompts: Texts, or mappings with ``prompt`` and ``seed``; the seed of a text is its place.
        out: Folder for the reference pictures, the journal and the result.
        settings: How to search.
        resume: Go on with a search that was stopped.
        on_step: Called after each denoising step with the number of pictures moved on.
        say: Told about every layer that was tried.

    Raises:
        SettingError: a setting cannot be used, or the folder holds another search.
        UnsupportedModelError: the model has no joint attention, or several denoisers.

    Source: arXiv 2411.14430, section 3.1. The paper takes 64 prompts and DINOv2; the threshold is
        not in the released code.
    """
    chosen = settings or SearchSettings()
    sites = [site for site in sites_of(pipe) if site.kind == "joint"]
    if not sites:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no joint attention, so it has no vital layers; they are "
            "searched in FLUX.1, SD3 and SD3.5. On a UNet use masa-ctrl, which needs none"
        )
    work = _Search(pipe, similarity, as_prompts(prompts), Path(out), chosen, Structure.of(sites))
    return work.run(resume, on_step, say)


class _Search:
    def __init__(
        self,
        pipe: Any,
        similarity: str | Similarity,
        prompts: Sequence[SeededPrompt],
        out: Path,
        settings: SearchSettings,
        structure: Structure,
    ) -> None:
        self._pipe, self._prompts, self._out = pipe, prompts, out
        self._settings, self._structure = settings, structure
        self._name = name_of_function(similarity)
        self._similarity = (
            find_similarity(similarity, pipe.device) if isinstance(similarity, str) else similarity
        )
        self._journal = Journal(out, self._record())

    def run(self, resume: bool, on_step: OnStep | None, say: Callable[[str], None]) -> Found:
        self._out.mkdir(parents=True, exist_ok=True)
        self._journal.open(resume=resume)
        similarities: list[list[float]] = []
        for layer in range(self._structure.layers):
            found: list[float] = []
            for start in range(0, len(self._prompts), self._settings.batch_size):
                stop = min(start + self._settings.batch_size, len(self._prompts))
                found += self._compare(layer, range(start, stop), on_step)
            similarities.append(found)
            say(
                f"layer {layer} of {self._structure.layers}: vitality {1 - _mean(found):.4f} over "
                f"{len(found)} prompts"
            )
        return self._conclude(similarities)

    def _compare(self, layer: int, places: range, on_step: OnStep | None) -> list[float]:
        condition = f"layer {layer}"
        known = [self._journal.get(condition, _id(place)) for place in places]
        if all(entry is not None for entry in known):
            if on_step is not None:
                on_step(len(places) * self._settings.steps)
            return [float(entry["similarity"]) for entry in known if entry is not None]
        whole = self._references(places, on_step)
        with attnctl.attach(self._pipe, [BypassedBlocks((layer,))]):
            without = self._draw(places, on_step)
        found = [float(value) for value in self._similarity(whole, without)]
        if len(found) != len(whole) or not all(map(math.isfinite, found)):
            raise AttnctlError(
                f"the similarity {self._name} gave {found} for {len(whole)} pairs of pictures; it "
                "must give one finite number a pair"
            )
        self._journal.forget(condition, [_id(place) for place in places])
        self._journal.add(
            [
                {"condition": condition, "id": _id(place), "similarity": value}
                for place, value in zip(places, found, strict=True)
            ]
        )
        return found

    def _references(self, places: range, on_step: OnStep | None) -> list[Image.Image]:
        """Pictures of the whole model, as they were saved or made now."""
        files = [self._out / "pictures" / f"{_id(place)}.png" for place in places]
        known = [self._journal.get(REFERENCE, _id(place)) for place in places]
        if all(entry and _is_whole(f, entry) for f, entry in zip(files, known, strict=True)):
            return [open_picture(file) for file in files]
        made = self._draw(places, on_step)
        for image, file, place in zip(made, files, places, strict=True):
            save_png(image, file, {"prompt": self._prompts[place].text})
        names = [_id(place) for place in places]
        self._journal.forget(REFERENCE, names)
        self._journal.add(
            [
                {"condition": REFERENCE, "id": name, "pixels": pixels_hash(image)}
                for name, image in zip(names, made, strict=True)
            ]
        )
        return made

    def _draw(self, places: range, on_step: OnStep | None) -> list[Image.Image]:
        prompts = [self._prompts[place] for place in places]
        jobs = [Job(prompt.text, prompt.seed) for prompt in prompts]
        recipe = self._settings.recipe(prompts[0].text)
        drawn = draw(self._pipe, recipe, batch_size=len(jobs), jobs=jobs, on_step=on_step)
        return [picture.image for picture in drawn]

    def _conclude(self, similarities: list[list[float]]) -> Found:
        settings = self._settings
        vitality = tuple(1 - _mean(found) for found in similarities)
        layers = VitalLayers(
            model=settings.model,
            structure=self._structure,
            similarity=self._name,
            steps=settings.steps,
            guidance=settings.guidance,
            seeds=tuple(prompt.seed for prompt in self._prompts),
            threshold=settings.threshold,
            layers=choose_layers(vitality, settings.top, settings.threshold),
            vitality=vitality,
        )
        record = {"format": 1, **self._record(), "similarities": similarities}
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        files = {
            "layers": layers.save(self._out / LAYERS_FILE),
            "scores": write_text(self._out / SCORES_FILE, text),
        }
        return Found(layers, similarities, files)

    def _record(self) -> dict[str, Any]:
        """Everything that decides about the similarities."""
        settings = asdict(self._settings)
        return {
            "similarity": self._name,
            "settings": {k: v for k, v in settings.items() if k not in ("top", "threshold")},
            "prompts": [[prompt.text, prompt.seed] for prompt in self._prompts],
            "model": model_record(self._pipe),
            "versions": versions(),
        }


def _id(place: int) -> str:
    return f"{place:05d}"


def _is_whole(file: Path, entry: Any) -> bool:
    return file.is_file() and pixels_hash(open_picture(file)) == entry["pixels"]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
