"""Who acts where and when, what conflicts, and what each site needs at each step."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from attnctl.blocks import ModelParts, find_blocks
from attnctl.calls import AddedRow, Layout, Pass, PassKind, Read, Step
from attnctl.engine.conflicts import check_pair
from attnctl.engine.module_plans import ModulePlanner
from attnctl.engine.site_plans import Link, SitePlan
from attnctl.errors import NoSiteError, UnsupportedModelError
from attnctl.families import Family
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where

EDITS = ("edit_qkv", "attend", "edit_scores", "edit_probs", "edit_output")

SiteKey = tuple[str, str]
Layouts = Mapping[SiteKey, Layout | None]


class Planner:
    """The plan of one session: made at attach, completed when a run shows sizes and step count.

    Args:
        techniques: In the order of the chain.
        sites: Every attention site by denoiser and path.
        families: Family of each denoiser.
        model: Name that the model was loaded by, if it is known.

    Attributes:
        labels: A name for each technique: its own, with ``#2`` behind that of a second one.
        modules: Module hooks.

    Raises:
        NoSiteError: a technique's selector matches nothing.
        UnsupportedModelError: a technique needs a layout that the model family does not tell.
        ConflictError: two techniques claim the same thing, whatever the size and length of a run.
    """

    def __init__(
        self,
        techniques: Sequence[Technique],
        sites: Mapping[str, Mapping[str, Site]],
        families: Mapping[str, Family],
        model: str = "",
    ) -> None:
        self.techniques = tuple(techniques)
        self.labels = _labels(self.techniques)
        self.families = dict(families)
        parts = {
            name: ModelParts(name, families[name].name, blocks, tuple(of_one.values()))
            for name, of_one in sites.items()
            for blocks in [find_blocks(of_one.values(), families[name].blocks)]
        }
        self.modules = ModulePlanner(dict(zip(self.labels, self.techniques, strict=True)), parts)
        self._sites = [site for of_one in sites.values() for site in of_one.values()]
        self._selectors = [t.select(self._sites, model) for t in self.techniques]
        positions = range(len(self.techniques))
        self._edit_sites = [self._sites_of_edits(position) for position in positions]
        self._reads = [self._sites_of_reads(position) for position in positions]
        self.layouts: Layouts = {}
        self._narrowed: dict[int, frozenset[Site]] = {}
        self._check_at_attach()

    @property
    def selected(self) -> tuple[Site, ...]:
        """Every site that some technique may act on."""
        chosen = {site for sites in self._edit_sites for site in sites}
        chosen |= {site for reads in self._reads for _, sites in reads for site in sites}
        return tuple(site for site in self._sites if site in chosen)

    def label(self, technique: Technique) -> str:
        """Name of an attached technique in reports and states."""
        return self.labels[self.techniques.index(technique)]

    def sites_of(self, technique: Technique) -> tuple[Site, ...]:
        """Sites where one technique acts; fewer of them once the sizes of a run are known."""
        position = self.techniques.index(technique)
        if position in self._narrowed:
            kept = self._narrowed[position]
            return tuple(site for site in self._sites if site in kept)
        return self._selected_by(position)

    def _selected_by(self, position: int) -> tuple[Site, ...]:
        selector = self._selectors[position]
        chosen = {s for s in self._edit_sites[position] if self._fits(s, selector)}
        for read, sites in self._reads[position]:
            chosen |= {s for s in sites if self._fits(s, read.where or selector)}
        return tuple(site for site in self._sites if site in chosen)

    def complete(self, total: int | None, layouts: Layouts) -> None:
        """Take the sizes of a run and check what could not be checked before.

        Raises:
            ConflictError: two techniques claim the same thing at a site and step of this run.
            NoSiteError: a technique's resolution is not among this run's.
        """
        self.layouts = layouts
        self._narrowed = {}
        for position, technique in enumerate(self.techniques):
            sites = self._selected_by(position)
            kept = technique.narrow(sites, {site: self.layout(site) for site in sites})
            self._narrowed[position] = frozenset(kept)
            if self._acts_on_sites(technique) and not kept:
                self._explain_grids(technique)
        if total is not None:
            for a, b in combinations(self.techniques, 2):
                steps = [
                    i for i in range(total) if a.strength_at(i, total) and b.strength_at(i, total)
                ]
                if steps:
                    check_pair(a, b, self.sites_of(a), self.sites_of(b), steps[0])

    def active(self, index: int, total: int | None) -> tuple[Technique, ...]:
        """Techniques that act at a step."""
        return tuple(t for t in self.techniques if t.strength_at(index, total) != 0.0)

    def plans(
        self, denoiser: str, index: int, total: int | None, pass_: Pass
    ) -> dict[str, SitePlan]:
        """Plan of every site that is not idle in a pass, by path."""
        links: dict[Site, list[Link]] = {}
        for position, technique in enumerate(self.techniques):
            strength = technique.strength_at(index, total)
            if strength == 0.0:
                continue
            edits = frozenset(e for e in EDITS if technique.overrides(e))
            label, kind = self.labels[position], technique.edits_rows
            if kind is not None and not any(row.fits(label, kind) for row in pass_.rows):
                edits = frozenset[str]()
            for site in self.sites_of(technique):
                if site.denoiser != denoiser:
                    continue
                reads = tuple(r for r in self._reads_at(position, site) if _is_due(r, pass_.kind))
                edits_here = edits if site in self._edit_sites[position] else frozenset[str]()
                if reads or edits_here:
                    heads = self._selectors[position].heads(site)
                    links.setdefault(site, []).append(
                        Link(technique, strength, heads, edits_here, reads, label)
                    )
        return {
            site.path: SitePlan(site, self.layout(site), tuple(chain))
            for site, chain in links.items()
        }

    def gradient_sites(self, denoiser: str, technique: Technique) -> frozenset[str]:
        """Paths that a technique's loss must have read."""
        position = self.techniques.index(technique)
        return frozenset(
            site.path
            for site in self.sites_of(technique)
            if site.denoiser == denoiser and any(r.grad for r in self._reads_at(position, site))
        )

    def added_rows(self, denoiser: str, step: Step) -> tuple[AddedRow, ...]:
        """Rows that the active techniques want of a denoiser at a step, each with its own.

        A technique that acts at sites of another denoiser alone wants none of this one.
        """
        rows: list[AddedRow] = []
        for technique in self.active(step.index, step.total):
            sites, label = self.sites_of(technique), self.label(technique)
            modules = self.modules.all_paths(label)
            is_here = any(site.denoiser == denoiser for site in sites)
            is_here = is_here or bool(self.modules.paths(denoiser, label))
            if is_here or not (sites or modules):
                rows += [replace(row, owner=label) for row in self._rows_of(technique)]
        return tuple(rows)

    def _rows_of(self, technique: Technique) -> list[AddedRow]:
        """Rows that a technique adds; some only where it acts at sites of one kind."""
        kinds = {site.kind for site in self.sites_of(technique)}
        return [r for r in technique.needs().rows if r.site_kind is None or r.site_kind in kinds]

    def added_sites(self, denoiser: str, index: int, total: int | None) -> list[str] | None:
        """Paths of the modules that treat added rows differently from the rows that they shadow.

        ``None`` if an active technique reads sibling rows, or if added rows have arguments of
        their own: they must share one forward then.
        """
        active = self.active(index, total)
        owners = [t for t in active if self._rows_of(t)]
        rows = [row for t in owners for row in self._rows_of(t)]
        has_arguments = any(row.arguments or row.prompt or row.other_picture for row in rows)
        if has_arguments or any(t.needs().couples for t in active):
            return None
        sites = [s.path for t in owners for s in self.sites_of(t) if s.denoiser == denoiser]
        return sites + [p for t in owners for p in self.modules.paths(denoiser, self.label(t))]

    def layout(self, site: Site) -> Layout | None:
        """Layout of a site in this run."""
        return self.layouts.get((site.denoiser, site.path))

    def _acts_on_sites(self, technique: Technique) -> bool:
        return any(technique.overrides(e) for e in EDITS) or bool(technique.needs().reads)

    def _sites_of_edits(self, position: int) -> tuple[Site, ...]:
        if not any(self.techniques[position].overrides(e) for e in EDITS):
            return ()
        return self._selectors[position].sites(self._sites)

    def _sites_of_reads(self, position: int) -> tuple[tuple[Read, tuple[Site, ...]], ...]:
        return tuple(
            (read, (read.where or self._selectors[position]).sites(self._sites))
            for read in self.techniques[position].needs().reads
        )

    def _reads_at(self, position: int, site: Site) -> tuple[Read, ...]:
        selector = self._selectors[position]
        return tuple(
            read
            for read, sites in self._reads[position]
            if site in sites and self._fits(site, read.where or selector)
        )

    def _fits(self, site: Site, where: Where) -> bool:
        if not where.needs_grid or not self.layouts:
            return True
        layout = self.layout(site)
        return layout is not None and where.allows_grid(site, *layout.grid[1:])

    def _explain_grids(self, technique: Technique) -> None:
        grids = {self.layout(s).grid[1:] for s in self.selected if self.layout(s)}  # pyright: ignore[reportOptionalMemberAccess]
        shown = ", ".join(f"{h}x{w}" for h, w in sorted(grids, reverse=True))
        raise NoSiteError(
            f"{technique.name}: no selected site has the wanted resolution in this run; "
            f"height x width of its sites: {shown or 'unknown'}"
        )

    def _check_at_attach(self) -> None:
        for technique in self.techniques:
            self._check_families(technique)
            if not technique.needs().layout:
                continue
            for site in self.sites_of(technique):
                if not self.families[site.denoiser].is_known:
                    known = sorted(f.name for f in _known_families())
                    raise UnsupportedModelError(
                        f"{technique.name} needs to know which tokens are text and how image "
                        f"tokens lie, which is not described for {site.denoiser!r} of this "
                        f"pipeline; supported: {', '.join(known)}. Describe the model with "
                        "attnctl.families.register_family"
                    )
        for a, b in combinations(self.techniques, 2):
            if a.steps.surely_overlaps(b.steps) and not _depends_on_size(a, b):
                check_pair(a, b, self.sites_of(a), self.sites_of(b), None)

    def _check_families(self, technique: Technique) -> None:
        """Refuse a denoiser of another family than a technique works on."""
        wanted = technique.needs().families
        for denoiser, family in self.families.items():
            if wanted and family.name not in wanted:
                raise UnsupportedModelError(
                    f"{technique.name} works on {', '.join(wanted)}, and {denoiser!r} of this "
                    f"pipeline is {family.name if family.is_known else 'of no known family'}; take "
                    "a pipeline of one of them"
                )


def _labels(techniques: Sequence[Technique]) -> tuple[str, ...]:
    """Names of techniques, those of a second and third of a kind with their number."""
    names = [technique.name for technique in techniques]
    counts = [names[:place].count(name) + 1 for place, name in enumerate(names)]
    return tuple(
        name if count == 1 else f"{name}#{count}" for name, count in zip(names, counts, strict=True)
    )


def _depends_on_size(a: Technique, b: Technique) -> bool:
    return any(t.where.needs_grid or t.overrides("narrow") for t in (a, b))


def _is_due(read: Read, kind: PassKind) -> bool:
    return kind == "gradient" if read.grad else kind == "main"


def _known_families() -> list[Family]:
    from attnctl.families import list_families

    return list_families()
