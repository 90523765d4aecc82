"""What techniques keep at a site from one step of a run to the next.

An entry belongs to a site, the rows of a forward and a technique, and fits tensors of one form
only. Another resolution, batch, dtype or device, guidance that is switched off and added rows all
change the rows or the form, so they never meet an entry of before: they miss.
"""

from collections.abc import Callable, Generator, Hashable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnctl.report import Report

if TYPE_CHECKING:
    from attnctl.calls import AttentionCall
    from attnctl.engine.roles import Rows

Place = tuple[str, str, str, str]  # label of the technique, denoiser, path, kind of the pass
Form = tuple[Any, ...]


@dataclass(slots=True)
class Entry:
    """What one technique keeps at one site for some rows.

    Attributes:
        form: Shapes, dtype and device that it fits.
        tensors: What is kept, by name.
        fact: Something small that belongs to them.
        step: Index of the step at which it was made.
    """

    form: Form
    tensors: Mapping[str, Tensor]
    fact: Any
    step: int
    _latest: int = field(init=False)
    _steps: int = 0

    def __post_init__(self) -> None:
        self._latest = self.step

    def steps_before(self, index: int) -> int:
        """Count how many steps have used it before step ``index``.

        A solver's second evaluation of a step counts nothing.
        """
        if index != self._latest:
            self._latest = index
            self._steps += 1
        return max(0, self._steps - 1)


class SiteCache:
    """The entries of one run, and what else is made once a run.

    Args:
        report: Is told how much memory the entries take and how often they served.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._entries: dict[tuple[Place, Rows], Entry] = {}
        self._made: dict[Hashable, Any] = {}

    def get(self, call: "AttentionCall") -> Entry | None:
        """The entry of this site, these rows and the technique that runs; ``None``: a miss.

        An entry of another form is dropped. Tensors are on the call's device.
        """
        key = (_place(call), call.rows)
        entry = self._entries.get(key)
        if entry is not None and entry.form != _form(call):
            del self._entries[key]
            entry = None
        self._report.cache_use(call.owner).count(is_hit=entry is not None)
        return entry

    def put(
        self,
        call: "AttentionCall",
        tensors: Mapping[str, Tensor],
        *,
        fact: Any = None,
        offload: bool = False,
    ) -> Entry:
        """Keep tensors, without their graph, in place of every entry that shares a row with them.

        Args:
            call: Tells site, rows, technique and form.
            tensors: What to keep.
            fact: Something small to keep with them.
            offload: Keep them in the memory of the CPU until they are taken.
        """
        place = _place(call)
        rows = set(call.rows)
        for key in [k for k in self._entries if k[0] == place and rows & set(k[1])]:
            del self._entries[key]
        device = "cpu" if offload else call.query.device
        kept = {name: tensor.detach().to(device) for name, tensor in tensors.items()}
        entry = Entry(_form(call), kept, fact, call.step.index)
        self._entries[(place, call.rows)] = entry
        mine = [e for (p, _), e in self._entries.items() if p[0] == call.owner]
        size = sum(t.nbytes for e in mine for t in e.tensors.values())
        self._report.cache_use(call.owner).measure(len(mine), size, str(device))
        return entry

    def made(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gave when ``key`` was first asked for in this run."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def labels(self) -> set[str]:
        """Techniques that keep something."""
        return {place[0] for place, _ in self._entries}

    def drop(self, label: str) -> None:
        """Forget what one technique keeps."""
        for key in [k for k in self._entries if k[0][0] == label]:
            del self._entries[key]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._made.clear()

    @contextmanager
    def explained_memory(self, label: str) -> Generator[None]:
        """Say in an out-of-memory error inside this block what the cache takes and what helps.

        Raises:
            torch.OutOfMemoryError: as it came, with the advice.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            taken = self._report.cache_use(label).peak_bytes / 2**20
            self.clear()
            raise torch.OutOfMemoryError(
                f"out of memory where {label} keeps its statistics ({taken:.0f} MiB so far, now "
                "freed); keep them on the CPU with offload=True, select fewer layers with where=, "
                f"or make smaller batches. {error}"
            ) from error


def on_device(tensor: Tensor, like: Tensor) -> Tensor:
    """A kept tensor on the device of ``like``."""
    return tensor if tensor.device == like.device else tensor.to(like.device, non_blocking=True)


def _place(call: "AttentionCall") -> Place:
    return (call.owner, call.site.denoiser, call.site.path, call.pass_.kind)


def _form(call: "AttentionCall") -> Form:
    query, key, value = call.query, call.key, call.value
    return (query.shape, key.shape, value.shape, query.dtype, query.device, call.scale)
