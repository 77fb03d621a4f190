"""Prior distributions of events: the thesis' four parameter sets and the null set."""

from dataclasses import dataclass
from math import log

import numpy as np

from lensml.lensing import BinaryLens, PointLens, crosses_caustic
from lensml.paths import InputError

T0_RANGE = (-50.0, 50.0)  # [day]
LOG10_TE = (1.35, 0.35)  # mean and standard deviation of log10(tE / day)
TE_RANGE = (3.0, 200.0)  # [day]
RHO_RANGE = (0.001, 0.01)  # [theta_E]


@dataclass(frozen=True, kw_only=True)
class ParameterSet:
    """Ranges of the binaries' parameters; an event that breaks a rule is drawn again."""

    s: tuple[float, float]  # log-uniform [theta_E]
    q: tuple[float, float]  # log-uniform
    u0: tuple[float, float]  # uniform [theta_E]
    caustic_crossing: bool = False  # the track meets a caustic within the survey
    min_u0_over_rho: float = 0.0  # the disc passes the lens at no fewer of its radii


PARAMETER_SETS: dict[str, ParameterSet] = {
    "baseline": ParameterSet(s=(0.1, 10), q=(1e-3, 1), u0=(0.001, 1.0)),
    "distinct": ParameterSet(s=(0.8, 1.5), q=(0.01, 0.5), u0=(0.001, 0.15), caustic_crossing=True),
    "planetary": ParameterSet(s=(0.1, 10), q=(1e-4, 1e-2), u0=(0.001, 1.0)),
    "stellar": ParameterSet(s=(0.1, 10), q=(0.3, 1), u0=(0.001, 1.0)),
}
# Of the null test: the companion has no measurable mass, and u0 > 5 rho keeps the finite source of
# one class, which its point-source twin lacks, from being an anomaly of its own.
NULL_SET = ParameterSet(s=(0.1, 10), q=(1e-8, 1e-8), u0=(0.001, 1.0), min_u0_over_rho=5.0)


def parameter_set(name: str) -> ParameterSet:
    """The parameter set called `name`: one of `PARAMETER_SETS`, or `null` of the null test."""
    known = PARAMETER_SETS | {"null": NULL_SET}
    if name not in known:
        raise InputError(
            f"`binary_params` is {name!r}, but one of {', '.join(PARAMETER_SETS)} was expected"
        )
    return known[name]


def log_uniform(generator: np.random.Generator, bounds: tuple[float, float]) -> float:
    """A draw that is uniform in the logarithm between `bounds`."""
    value = np.exp(generator.uniform(log(bounds[0]), log(bounds[1])))
    return float(np.clip(value, *bounds))  # exp(log(x)) may leave the range by one last bit


def _timing(generator: np.random.Generator) -> tuple[float, float]:
    """`(t0, tE)` of either class [day]."""
    t0 = generator.uniform(*T0_RANGE)
    while not TE_RANGE[0] <= (tE := 10 ** generator.normal(*LOG10_TE)) <= TE_RANGE[1]:
        pass
    return t0, tE


def draw_binary(
    parameters: ParameterSet, generator: np.random.Generator, window: tuple[float, float]
) -> BinaryLens:
    """One binary from its priors, drawn anew until it keeps the set's rules in `window` [day]."""
    while True:
        t0, tE = _timing(generator)
        event = BinaryLens(
            t0=t0,
            u0=generator.uniform(*parameters.u0),
            tE=tE,
            rho=log_uniform(generator, RHO_RANGE),
            s=log_uniform(generator, parameters.s),
            q=log_uniform(generator, parameters.q),
            alpha=generator.uniform(0, 2 * np.pi),
        )
        if event.u0 < parameters.min_u0_over_rho * event.rho:
            continue
        if not parameters.caustic_crossing or crosses_caustic(event, *window):
            return event


def draw_single(parameters: ParameterSet, generator: np.random.Generator) -> PointLens:
    """One single lens of a population set: the same priors and the same finite sources."""
    while True:
        t0, tE = _timing(generator)
        u0 = generator.uniform(*parameters.u0)
        rho = log_uniform(generator, RHO_RANGE)
        if u0 >= parameters.min_u0_over_rho * rho:
            return PointLens(t0=t0, u0=u0, tE=tE, rho=rho)
