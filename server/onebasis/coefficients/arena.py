"""The device-resident cores of the tasks in use: one row per slot, one view per site."""

from collections.abc import Mapping

import torch
from torch import Tensor

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.expansion import expansion_for
from onebasis.coefficients.slots import SlotTable
from onebasis.core.request import TaskCoefficients
from onebasis.kernels.memory import zeros_on_demand


class Arena:
    """A [n_slots, n_core_numbers] float32 table. A task is copied in when it is first needed, between steps, and
    stays until its row is wanted and no request uses it. Engine thread only.

    Memory is claimed from the system as rows are first written.
    """

    def __init__(self, basis: BasisSpec, *, n_slots: int, device: torch.device) -> None:
        self._rows = zeros_on_demand((n_slots + 1, basis.n_core_numbers), dtype=torch.float32, device=device)
        self.base_row = n_slots
        self.n_slots = n_slots
        self.slots = SlotTable(n_slots)
        self.n_copied = 0
        self._expand = expansion_for(basis, device)
        views: dict[str, Tensor] = {}
        offsets: dict[str, int] = {}
        start = 0
        for site in basis.sites:
            end = start + site.k_out * site.k_in
            views[site.name] = self._rows[:, start:end].view(n_slots + 1, site.k_out, site.k_in)
            offsets[site.name] = start
            start = end
        self.site_cores: Mapping[str, Tensor] = views
        """By site name, [n_slots + 1, k_out, k_in] views of the table; the last row stays zero, for base tokens."""
        self.site_offsets: Mapping[str, int] = offsets
        """By site name, where its core begins in a row of the table."""

    @property
    def table(self) -> Tensor:
        """[n_slots + 1, n_core_numbers] float32, all rows."""
        return self._rows

    def acquire(self, coefficients: TaskCoefficients) -> int:
        """Pin a task and give its slot, copying its cores in if they are not there.

        Raises:
            NoFreeSlot: every row is pinned. Nothing changed; try again after a release.
        """
        is_there = self.slots.is_resident(coefficients.digest)
        cores = None if is_there else self._expand(coefficients)
        slot = self.slots.acquire(coefficients.digest).slot
        if cores is not None:
            self._rows[slot].copy_(cores)
            self.n_copied += 1
        return slot

    def release(self, coefficients: TaskCoefficients) -> None:
        """Undo one `acquire`."""
        self.slots.release(coefficients.digest)
