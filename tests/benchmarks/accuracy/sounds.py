"""Sounds whose notes are known: harmonics that die away, white noise at a given signal-to-noise ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def tone(frequency: float, samples: int, rate: int, random: np.random.Generator) -> Array:
    """One struck note, float64 [samples], with an RMS of 1 at first: up to 12 harmonics, the high ones weaker and
    shorter.

    Args:
        frequency: of the fundamental, in Hz.
        samples: its length.
        rate: samples a second.
        random: draws the timbre, the phases and how fast the note dies away.
    """
    time = np.arange(samples) / rate
    tilt, half_life = random.uniform(0.5, 2.0), random.uniform(0.3, 1.5)
    sound, power = np.zeros(samples), 0.0
    for harmonic in range(1, 13):
        # Nothing close to half the rate, where it would fold back.
        if harmonic * frequency > 0.45 * rate:
            break
        size = random.uniform(0.3, 1.0) / harmonic**tilt
        decay = 0.5 ** (time * harmonic**0.5 / half_life)
        sound += size * decay * np.sin(2 * np.pi * (harmonic * frequency * time + random.uniform()))
        power += size**2 / 2
    return sound / np.sqrt(power)


def with_noise(sound: Array, decibels: float, random: np.random.Generator) -> Array:
    """White noise on top, so many decibels below the sound's own power."""
    power = np.square(sound).mean() / 10 ** (decibels / 10)
    return sound + np.sqrt(power) * random.standard_normal(len(sound))
