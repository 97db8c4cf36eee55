"""Series [n, T, D] of bits: chords that are made up here, and Bach's chorales; steps beyond the end of a series are NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np

PIANO = 88  # keys
KEYS = 24  # two octaves
STEPS, SHORTEST, PIECES = 16, 10, 100
# which of the triads on the seven degrees of a scale follows which: after I anything, after V mostly I
MOVES = np.array(
    [
        [2, 2, 1, 4, 4, 3, 0],
        [1, 1, 0, 1, 6, 0, 1],
        [0, 1, 1, 3, 0, 5, 0],
        [3, 2, 0, 1, 4, 0, 0],
        [6, 0, 0, 1, 2, 1, 0],
        [0, 4, 1, 4, 1, 1, 0],
        [6, 0, 1, 0, 1, 0, 1],
    ]
)
SCALE = np.array([0, 2, 4, 5, 7, 9, 11])


def chords() -> np.ndarray:
    """Triads in a key of the series' own, each tone in one of two octaves, some left out: [100, 16, 24], always the same."""
    draw = np.random.default_rng(0)
    x = np.full((PIECES, STEPS, KEYS), np.nan)
    for piece in x:
        tonic, degree = draw.integers(12), 0
        for step in piece[: draw.integers(SHORTEST, STEPS + 1)]:
            tones = (tonic + SCALE[(degree + np.array([0, 2, 4])) % 7]) % 12 + 12 * draw.integers(2, size=3)
            step[:] = 0.0
            step[tones[draw.random(3) < 0.9]] = 1.0
            degree = draw.choice(7, p=MOVES[degree] / MOVES[degree].sum())
    return x


def chorales(path: Path, part: str) -> np.ndarray:
    """The piano rolls [n, T, 88] of a part, T the longest of all parts, from a file of packed bits."""
    with np.load(path, allow_pickle=False) as file:
        longest = max(int(file[name].max()) for name in file if name.endswith("_lengths"))
        bits, lengths = np.unpackbits(file[part], axis=2)[..., :PIANO], file[f"{part}_lengths"]
    x = np.full((len(bits), longest, PIANO), np.nan)
    for piece, roll, length in zip(x, bits, lengths, strict=True):
        piece[:length] = roll[:length]
    return x
