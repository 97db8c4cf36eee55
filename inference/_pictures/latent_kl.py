"""KL of each latent's q(z | x) from its prior, in the mean over rows, and which latents carry no information."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, OKABE_ITO, QUIET, new_figure, plain, styled
from inference._training.collapse import NOTHING


def subject(run: Scene) -> dict[str, list[float]] | None:
    found = run.json["notes"].get("kl_by_dimension")
    return found if found and sum(map(len, found.values())) > 1 else None


def draw(run: Scene, found: dict[str, list[float]]) -> Figure:
    names = [f"{plain(name)}[{k}]" for name, values in found.items() for k in range(len(values))]
    kl = np.concatenate([np.asarray(values) for values in found.values()])
    order = np.argsort(-kl, kind="stable")
    lost = kl[order] < NOTHING
    figure = new_figure(8.4, 3.4, run.title(f"{lost.sum()} of {len(kl)} latents below {NOTHING:g} nats a row"))
    axes = styled(figure.add_subplot())
    axes.bar(np.arange(len(kl)), kl[order], color=np.where(lost, OKABE_ITO[1], OKABE_ITO[0]), width=0.8)
    axes.axhline(NOTHING, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    axes.set_ylabel("KL(q ‖ prior), nats a row", color=INK)
    if len(kl) <= 40:
        axes.set_xticks(np.arange(len(kl)), [names[i] for i in order], rotation=0 if len(kl) <= 12 else 90)
    else:
        axes.set_xlabel("latents, sorted")
    return figure
