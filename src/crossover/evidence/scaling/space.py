"""Where the fitter looks: a box of well-scaled coordinates, each with a meaning, mapped linearly to the constants.

Shape suffixes: K candidates, P constants, Z free coordinates, I points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossover.errors import RunError
from crossover.evidence.scaling.laws import EXPONENT_BOX, EXPONENTS, NAMES, OVERFIT, Floats, Form, Point, inputs_of

# A coefficient alone has no scale: ln A moves with alpha times ln N. The coordinate that is searched is therefore the
# logarithm of the whole term at the typical (geometric mean) point, and ln A follows from it.
CENTRED = {
    "size_coefficient": ("size_exponent",),
    "data_coefficient": ("data_exponent",),
    "overfit_coefficient": ("overfit_repeats_exponent", "overfit_size_exponent"),
}
REUSE_BOX = (0.1, 1e5)
# Shares of the lowest and of the highest loss between which a term at the typical point may lie.
TERM_BOX = (1e-4, 10.0)
IRREDUCIBLE_BOX = (0.02, 1.0)


@dataclass(frozen=True)
class Space:
    """The box: coordinates y in [0, 1], free constants z = lower + y width, constants theta = base + M z.

    Args:
        names: The free constant that each coordinate stands for, Z of them.
        matrix_PZ: M.
        base_P: Held constants, and 0 elsewhere.
        lower_Z: Lower ends of the box.
        width_Z: Its widths.
    """

    names: tuple[str, ...]
    matrix_PZ: Floats
    base_P: Floats
    lower_Z: Floats
    width_Z: Floats

    def theta(self, y_KZ: Floats) -> Floats:
        """Give the constants (as `Constants.theta`) at points of the unit box, shape (K, P)."""
        return self.base_P + (self.lower_Z + y_KZ * self.width_Z) @ self.matrix_PZ.T

    def inside(self, theta_KP: Floats) -> Floats:
        """Give the points of the unit box nearest to these constants, held constants apart, shape (K, Z)."""
        free = [NAMES.index(name) for name in self.names]
        square_ZZ, base_Z = self.matrix_PZ[free], self.base_P[free]
        z_KZ = np.linalg.solve(square_ZZ, (theta_KP[:, free] - base_Z).T).T
        return np.clip((z_KZ - self.lower_Z) / self.width_Z, 0.0, 1.0)


def space_of(points: Sequence[Point], form: Form) -> Space:
    """Lay the box around what the points can say.

    Args:
        points: The measured points.
        form: Which constants are free.

    Returns:
        The box.

    Raises:
        RunError: The form has an overfitting term and no point repeats its text.
    """
    centre = _centre(points, form)
    names, size = form.free, len(NAMES)
    base_P = np.zeros(size)
    base_P[NAMES.index("overfit_coefficient")] = -np.inf
    for name, value in form.held.items():
        base_P[NAMES.index(name)] = value if name in EXPONENTS else np.log(value)
    if form.tied_exponents and "size_exponent" in form.held:
        base_P[NAMES.index("data_exponent")] = form.held["size_exponent"]
    matrix_PZ = np.zeros((size, len(names)))
    for column, name in enumerate(names):
        matrix_PZ[NAMES.index(name), column] = 1.0
        if name == "size_exponent" and form.tied_exponents:
            matrix_PZ[NAMES.index("data_exponent"), column] = 1.0
    for coefficient, exponents in CENTRED.items():
        if coefficient in names:
            row = NAMES.index(coefficient)
            base_P[row] = 0.0
            for exponent in exponents:
                base_P[row] += centre[exponent] * base_P[NAMES.index(exponent)]
                matrix_PZ[row] += centre[exponent] * matrix_PZ[NAMES.index(exponent)]
    bounds = np.array([_box(name, points) for name in names])
    return Space(names, matrix_PZ, base_P, bounds[:, 0], bounds[:, 1] - bounds[:, 0])


def _centre(points: Sequence[Point], form: Form) -> dict[str, float]:
    """Give the factor of each exponent in its coefficient at the typical point."""
    at = inputs_of(points)
    repeated_I = at.repeats_I > 0
    if form.overfitting and not repeated_I.any():
        raise RunError("scaling law: the overfitting term needs points with repeated text; leave it out")
    log_tokens_I = at.log_fresh_I + np.log1p(at.repeats_I)
    middle = {
        "size_exponent": float(at.log_parameters_I.mean()),
        "data_exponent": float(log_tokens_I.mean()),
        "overfit_repeats_exponent": 0.0,
        "overfit_size_exponent": 0.0,
    }
    if form.overfitting:
        middle["overfit_repeats_exponent"] = -float(np.log(at.repeats_I[repeated_I]).mean())
        middle["overfit_size_exponent"] = -float(at.log_parameters_per_unique_I[repeated_I].mean())
    return middle


def _box(name: str, points: Sequence[Point]) -> tuple[float, float]:
    """Give the ends between which a coordinate is searched."""
    lowest, highest = min(p.loss_nats for p in points), max(p.loss_nats for p in points)
    if name in EXPONENT_BOX:
        return EXPONENT_BOX[name]
    if name == "irreducible_nats":
        return float(np.log(IRREDUCIBLE_BOX[0] * lowest)), float(np.log(IRREDUCIBLE_BOX[1] * lowest))
    if name in ("data_reuse", "size_reuse"):
        return float(np.log(REUSE_BOX[0])), float(np.log(REUSE_BOX[1]))
    assert name in CENTRED or name in OVERFIT
    return float(np.log(TERM_BOX[0] * lowest)), float(np.log(TERM_BOX[1] * highest))
