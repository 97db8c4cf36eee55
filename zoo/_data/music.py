"""Series [n, T, D] of bits: chords that are made up here, and Bach's chorales; steps beyond the end of a series are NaN."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo._errors import UsageError

PIANO = 88  # keys
CHORALES = ("train", "valid", "test")
CONTENT = "8d408e65d1fd3301acb9683194e4ae7d5b54cbc607f0fc3253aa3919ba4cac5f"  # digest of the chorales
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
    """The piano rolls [n, T, 88] of a part, T the longest of all parts: from packed bits (.npz), or from pitches (.json).

    Raises `UsageError` where a file of pitches does not hold these chorales.
    """
    parts = _of_pitches(path) if path.suffix == ".json" else _of_bits(path)
    longest = max(len(roll) for rolls in parts.values() for roll in rolls)
    x = np.full((len(parts[part]), longest, PIANO), np.nan)
    for piece, roll in zip(x, parts[part], strict=True):
        piece[: len(roll)] = roll
    return x


def _of_bits(path: Path) -> dict[str, list[np.ndarray]]:
    """Part → the piano roll [steps, 88] of each piece."""
    with np.load(path, allow_pickle=False) as file:
        whole = {name: (np.unpackbits(file[name], axis=2)[..., :PIANO], file[f"{name}_lengths"]) for name in CHORALES}
    return {name: [roll[:n] for roll, n in zip(*both, strict=True)] for name, both in whole.items()}


def _of_pitches(path: Path) -> dict[str, list[np.ndarray]]:
    """The same from lists of the MIDI pitches that sound at each step; the lowest key is 21."""
    try:
        parts = json.loads(path.read_bytes())
        rolls = {name: [_roll(piece) for piece in parts[name]] for name in CHORALES}
    except (ValueError, TypeError, LookupError, AttributeError):
        rolls = {}
    if not rolls or digest(rolls) != CONTENT:
        raise UsageError(f"'{path}' does not hold the chorales that are known by their checksum; remove it.")
    return rolls


def _roll(piece: list[list[int]]) -> np.ndarray:
    roll = np.zeros((len(piece), PIANO), np.uint8)
    for step, pitches in zip(roll, piece, strict=True):
        step[np.array(pitches, dtype=int) - 21] = 1
    return roll


def digest(parts: Mapping[str, Sequence[np.ndarray]]) -> str:
    """The sha256 of the pieces' shapes and bits."""
    found = hashlib.sha256()
    for rolls in parts.values():
        for roll in rolls:
            found.update(b"%d " % len(roll) + np.packbits(roll, axis=1).tobytes())
    return found.hexdigest()
