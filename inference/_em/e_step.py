"""Which E-step EM takes: exact expectations, draws of the latents, or their most probable values; and whom it serves."""

from __future__ import annotations

import re
from dataclasses import dataclass

from inference._density import local
from inference._mcmc import entries
from inference._numerics import ranks
from zoo._errors import UsageError
from zoo._options import LARGEST
from zoo._program.structure import Structure


@dataclass(frozen=True)
class EStep:
    """`kind`: exact, sample or hard. `draws` of each row's latents, with sample."""

    kind: str = "exact"
    draws: int = 1

    @classmethod
    def named(cls, text: str) -> EStep:
        """Of `exact`, `hard`, `sample` or `sample:M`. Raises `UsageError` for anything else."""
        found = re.fullmatch(r"(exact|hard|sample)|sample:(\d+)", text)
        draws = 1 if found is None or found[2] is None else int(found[2])
        if found is None or not 1 <= draws <= LARGEST:
            raise UsageError(
                f"Expected exact, hard, sample or sample:M (M draws of 1 or more) for e_step, got '{text}'."
            )
        return cls(found[1] or "sample", draws)

    def refusal(self, structure: Structure) -> str | None:
        """Why it cannot serve the program, or None."""
        if structure.cut:
            return structure.cut
        if ranks.size() > 1:
            return f"e_step={self.kind} runs in one process: start it without torchrun, or take e_step=exact"
        if structure.global_latents:
            names = ", ".join(f"'{s.name}'" for s in structure.global_latents)
            return (
                f"e_step={self.kind} completes the latents of each row, and the global latents {names} belong to all of them: "
                "take e_step=exact, or nuts"
            )
        if self.kind == "hard":
            one = structure.enumerable and bool(structure.discrete_locals)
            why = "e_step=hard needs discrete latents whose joint values can be listed, and no others: take exact or sample"
            return None if one else why
        return None if structure.is_exact else _undrawable(structure)


def _undrawable(structure: Structure) -> str | None:
    """Why the latents of a program without an exact posterior cannot be drawn, or None."""
    if structure.outside:
        return f"e_step=sample looks at one row at a time, and '{structure.outside[0]}' is observed outside the plate 'data'"
    if not structure.continuous_locals:
        reason = entries.refusal(structure)
        return None if reason is None else f"e_step=sample {reason}"
    left = structure.summed
    if left.discrete_locals:
        names = ", ".join(f"'{s.name}'" for s in left.discrete_locals)
        return (
            f"e_step=sample draws continuous latents alone, and the discrete {names} beside them cannot be summed out"
        )
    reason = local.refusal(left)
    return None if reason is None else f"e_step=sample draws each row's latents from its density, and {reason}"
