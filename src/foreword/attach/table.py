"""The table of positions in a stack that takes no position_ids (BART's decoder): it reads the shifted positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foreword.attach.entry import by_name, parameters_of
from foreword.attach.state import State


class PositionTable:
    """The hooks of one table. The stack's own hook has set what it is to read."""

    def __init__(self, state: State, table: nn.Module) -> None:
        self._state, self._names = state, parameters_of(table)

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any] | None = None) -> Any:
        """Return the changed arguments; None: they stay."""
        shifted = self._state.this_pass.positions
        if self._state.current is None or shifted is None or kwargs is None:
            return None
        # the table puts a dimension in front
        position_ids = shifted[0] if shifted.shape[0] == 1 else shifted
        return (), by_name(self._names, args, kwargs) | {"position_ids": position_ids}

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Return `[B, n, width]` of the output `[1, B, n, width]` for rows of different offsets; None: it stays."""
        return output[0] if output.dim() == 4 else None
