"""Attach techniques to a pipeline, and take them off again without a trace."""

from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

from attnctl.engine.control import Control, control_of
from attnctl.engine.planner import Planner
from attnctl.errors import AlreadyAttachedError, AttnctlError, KernelError, nearest
from attnctl.kernels import list_kernels
from attnctl.report import Report
from attnctl.sites import Site
from attnctl.technique import Technique

if TYPE_CHECKING:
    from attnctl.maps import AttentionMaps
    from attnctl.recipes import Recipe


class Session:
    """Techniques that are attached to one pipeline; a context manager.

    Leaving the ``with`` block, by any road, or :meth:`detach`, gives back the very same processor,
    scheduler and hook objects. ``repr`` shows what is on.
    """

    def __init__(self, control: Control, techniques: tuple[Technique, ...]) -> None:
        self._control = control
        self._techniques = techniques
        self._is_attached = False

    @property
    def techniques(self) -> tuple[Technique, ...]:
        """This session's techniques, in the order of the chain."""
        return self._techniques

    @property
    def is_attached(self) -> bool:
        """Whether the techniques are in force."""
        return self._is_attached

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every attention site of the pipeline's denoisers, in execution order."""
        return tuple(s for of_one in self._control.sites.values() for s in of_one.values())

    @property
    def maps(self) -> "AttentionMaps":
        """Attention maps of the latest run, gathered by ``HeatMaps``.

        Raises:
            AttnctlError: ``HeatMaps`` is not attached, or nothing has run yet.
        """
        found = self._control.runs.result_of("heat-maps")
        if found is not None:
            return found
        if any(t.name == "heat-maps" for t in self._control.runs.planner.techniques):
            raise AttnctlError("no maps yet: call the pipeline first")
        raise AttnctlError("no maps: attach HeatMaps(...) among the techniques")

    def report(self) -> Report:
        """What ran in the latest run: step, site, technique, kernel, calls, seconds."""
        return self._control.runs.report

    def rebase(self) -> None:
        """Control processors that were replaced from outside while this session was attached."""
        self._control.rebase()

    def detach(self) -> None:
        """Take this session's techniques off; a second call does nothing."""
        if not self._is_attached:
            return
        self._is_attached = False
        mine = {id(technique) for technique in self._techniques}
        self._control.change(
            [t for t in self._control.runs.planner.techniques if id(t) not in mine]
        )

    def _attach(self) -> None:
        self._control.change([*self._control.runs.planner.techniques, *self._techniques])
        self._is_attached = True

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "attached" if self._is_attached else "detached"
        planner = self._control.runs.planner
        lines = [f"<Session {state}>"]
        for technique in self._techniques:
            where = _reach(planner, technique) if self._is_attached else "no sites"
            lines.append(f"  {technique!r}: {where}")
        return "\n".join(lines)


def attach(
    pipe: Any,
    techniques: "Technique | Sequence[Technique] | Recipe | str | PathLike[str]",
    *,
    kernel: str = "auto",
    branches: Sequence[str] | None = None,
) -> Session:
    """Attach techniques to a pipeline, at once; everything is checked before anything changes.

    Args:
        pipe: A diffusers pipeline, or a bare denoiser (then one call is one step).
        techniques: Techniques in the order of the chain, a recipe, or the path of a recipe file.
        kernel: Kernel for the sites where a technique acts; ``"auto"`` takes the cheapest.
        branches: Guidance branches in the order of the denoiser's batch, such as
            ``("uncond", "cond")``, where they cannot be told.

    Returns:
        A session; leave its ``with`` block or call ``detach()`` to restore the pipeline.

    Raises:
        AlreadyAttachedError: a technique of that name is attached already, or another pipeline's
            session holds the model.
        ConflictError: two techniques claim the same thing at the same site and step.
        NoSiteError, LayerNotFoundError, WhereError: a selector does not fit the model.
        UnsupportedModelError: a technique needs what the model does not offer.
        KernelError: no kernel of that name.
    """
    chosen = _techniques(techniques)
    _check_kernel(kernel)
    control = control_of(pipe, kernel, branches)
    if control.runs.planner.techniques and (kernel, branches) != ("auto", None):
        raise AlreadyAttachedError(
            "kernel= and branches= hold for the whole pipeline; give them to its first session"
        )
    session = Session(control, chosen)
    session._attach()  # pyright: ignore[reportPrivateUsage]
    return session


def _techniques(given: Any) -> tuple[Technique, ...]:
    if isinstance(given, Technique):
        return (given,)
    if isinstance(given, str | PathLike):
        from attnctl.recipes import Recipe

        given = Recipe.from_file(given)
    if hasattr(given, "build_techniques"):
        return tuple(given.build_techniques())
    chosen = tuple(given)
    for one in chosen:
        if not isinstance(one, Technique):
            hint = " (an object is wanted: add parentheses)" if isinstance(one, type) else ""
            raise TypeError(
                f"attach takes techniques such as AttendAndExcite(...), got {one!r}{hint}"
            )
    return chosen


def _reach(planner: Planner, technique: Technique) -> str:
    """How many modules a technique acts on."""
    sites = planner.sites_of(technique)
    modules = planner.modules.all_paths(planner.label(technique))
    counts = [f"{len(sites)} sites"] if sites or not modules else []
    return ", ".join(counts + ([f"{len(modules)} blocks"] if modules else []))


def _check_kernel(kernel: str) -> None:
    names = [k.name for k in list_kernels()]
    if kernel != "auto" and kernel not in names:
        raise KernelError(f"unknown kernel {kernel!r}; {nearest(kernel, ['auto', *names])}")
