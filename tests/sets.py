"""Small sets, curves and networks of the tests, made without the simulator."""

import json
from contextlib import contextmanager

import numpy as np
import torch

from lensml.evaluation import Scores, ideal_log_ratio
from lensml.lensing import point_lens_magnification
from lensml.network import DataSetEpochs, Network
from lensml.simulation import LightCurves
from lensml.streaming import answer_lines


def toy_set(
    num_pairs=40, num_epochs=120, *, sigma=0.05, bump=0.3, f_s=1.0, seed=0, shuffle=True, **meta
):
    """Binary = twin plus a bump of magnification whose size varies over the pairs."""
    rng = np.random.default_rng(seed)
    time = np.linspace(-100.0, 100.0, num_epochs)
    t0, u0, tE = rng.uniform(-20, 20, num_pairs), rng.uniform(0.1, 1, num_pairs), 20.0
    twin = point_lens_magnification(np.hypot(u0[:, None], (time - t0[:, None]) / tE))
    size = bump * 10 ** rng.uniform(-2, 1, num_pairs)
    place = rng.uniform(-60, 60, num_pairs)
    binary = twin + size[:, None] * np.exp(-0.5 * ((time - place[:, None]) / 4) ** 2)
    magnification = np.stack([twin, binary], axis=1).reshape(-1, num_epochs).astype(np.float32)
    n = 2 * num_pairs
    y = np.tile(np.array([0, 1], np.int8), num_pairs)
    params = np.full((n, 8), np.nan)
    params[:, 7] = f_s
    for column, values in ((0, t0), (1, u0), (2, np.full(num_pairs, tE))):
        params[:, column] = np.repeat(values, 2)
    params[1::2, 3:7] = np.column_stack(
        [np.full(num_pairs, 1e-3), *(10 ** rng.uniform(-1, 0, (2, num_pairs))), place / 60 + 1]
    )
    clean = 18.0 - 2.5 * np.log10(1 + f_s * (magnification.astype(float) - 1))
    X = clean + sigma * rng.standard_normal(clean.shape)
    X[rng.random(clean.shape) < 0.2] = np.nan
    seen = np.isfinite(X[1::2])
    terms = np.where(seen, ((clean[1::2] - clean[::2]) / sigma) ** 2, 0)
    curves = LightCurves(
        X=X.astype(np.float32),
        y=y,
        time=time,
        sigma=np.full(n, sigma, np.float32),
        m_base=np.full(n, 18.0, np.float32),
        pair=np.repeat(np.arange(num_pairs), 2),
        dchi2=np.repeat(terms.sum(axis=1), 2),
        params=params,
        meta=dict(preset="toy", seed=seed, num_events=num_pairs, **meta),
        magnification=magnification,
    )
    return curves.rows(rng.permutation(n)) if shuffle else curves


def epoch_lines(num_events, length, seed=0, m_base=18.0, datasets=()):
    """Epochs of several events in turn, each perhaps of the next of `datasets`, as bare lines."""
    generator = np.random.default_rng(seed)
    base = {} if m_base is None else {"m_base": m_base}
    return [
        json.dumps(
            {
                "event": f"e{i}",
                "time": k + 0.1 * i,
                "mag": 18 - generator.gamma(1.0),
                "mag_err": 0.1,
            }
            | base
            | ({"dataset": datasets[k % len(datasets)]} if datasets else {})
        )
        for k in range(length)
        for i in range(num_events)
    ]


def one_by_one(stream, lines):
    """Replies of a stream to lines that come one after the other."""
    return [reply for number, line in enumerate(lines, 1)
            for reply in answer_lines(stream, [line], number)]  # fmt: skip


def photometry(length, seed=0, *, wide=False):
    """Time, magnitude and error of a bright lens with a bump; `wide`: seasons, errors 0.003-0.2."""
    rng = np.random.default_rng(seed)
    step = rng.exponential(0.7, length) + 0.01
    error = rng.choice([0.003, 0.02, 0.2], length) if wide else rng.uniform(0.01, 0.08, length)
    step[97 if wide else length :: 97] += 150.0
    time = 2_457_000 + np.cumsum(step)
    bright = 1.5 / np.hypot(0.3, (time - time[length // 2]) / 15)
    bright = bright + 1.0 * np.exp(-0.5 * ((time - time[2 * length // 3]) / 2) ** 2)
    return time, 18 - 2.5 * np.log10(1 + bright) + error * rng.standard_normal(length), error


def random_network(seed=0):
    """An untrained network in which all branches matter and P varies."""
    torch.manual_seed(seed)
    network = Network().eval()
    for block in network.blocks:
        torch.nn.init.normal_(block.mix.weight, std=0.1)
    torch.nn.init.normal_(network.head[-1].weight)
    return network


@contextmanager
def watched_threads(network, monkeypatch):
    """Torch has two threads inside; yields how many it had at each call of the network's head."""
    seen, threads, join = [], torch.get_num_threads(), network.join

    def watched(*inputs):
        seen.append(torch.get_num_threads())
        return join(*inputs)

    monkeypatch.setattr(network, "join", watched)
    torch.set_num_threads(2)
    try:
        yield seen
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def data_sets(num=3, length=150, seed=0, *, given=(), wide=False):
    """One event in `num` data sets of other zero points that begin one after the other.

    Some epochs of two data sets are at the same time. Baselines of the data sets `given` are known.
    """
    found = []
    for k in range(num):
        time, mag, error = (x[8 * k :: k + 1].copy() for x in photometry(length, seed, wide=wide))
        if k:
            time[:-1:2] += np.diff(time)[::2] / 2
        mag += k + error * np.random.default_rng(100 * seed + k).standard_normal(len(mag))
        found.append(DataSetEpochs(time, mag, error, 18.0 + k if k in given else None))
    return found


def in_order(datasets):
    """Time, mag, mag_err, m_base and name of each epoch, as `predict_event` orders them."""
    first = sorted(datasets, key=lambda d: d.times[0])
    epochs = [
        (t, k, float(m), float(e), d.m_base)
        for k, d in enumerate(first)
        for t, m, e in zip(d.times.tolist(), d.mag, d.sigma, strict=True)
    ]
    return [(t, m, e, base, f"set {k}") for t, k, m, e, base in sorted(epochs, key=lambda x: x[:2])]


def spread_network():
    """An untrained network whose output is not 0.5 everywhere."""
    torch.manual_seed(0)
    network = Network()
    torch.nn.init.normal_(network.head[-1].weight)
    return network


def blended_magnitude(t0, u0, tE, f_s, m_base, time):
    """Magnitude of a blended single lens at `time`."""
    u = np.hypot(u0, (time - t0) / tE)
    return m_base - 2.5 * np.log10(f_s * (u**2 + 2) / (u * np.sqrt(u**2 + 4)) + 1 - f_s)


def blended_photometry(seed=1, sigma=0.01, num_epochs=400):
    """Epochs, magnitudes and errors of a blended single lens."""
    rng = np.random.default_rng(seed)
    time = 2457000 + np.sort(rng.uniform(0, 300, num_epochs))
    mag = blended_magnitude(2457170.3, 0.2, 25.0, 0.6, 18.3, time)
    return time, mag + rng.normal(0, sigma, time.size), np.full(time.size, sigma)


def planted(num=400, seed=0):
    """Pairs of every strength; one score finds all above 75, the other none below 500."""
    rng = np.random.default_rng(seed)
    y, pair = np.tile([0, 1], num), np.repeat(np.arange(num), 2)
    dchi2 = np.repeat(10 ** rng.uniform(0, 4, num), 2)
    noise = rng.normal(size=(2, 2 * num))
    good = noise[0] + 10 * ((dchi2 > 75) & (y == 1))
    bad = noise[1] + 10 * ((dchi2 > 500) & (y == 1))
    return y, dchi2, pair, good, bad


def normal_ratio(dchi2, seed=0):
    """Rows (twin, binary) of realised log-likelihood ratios of pairs of the given delta-chi2."""
    d, y = np.repeat(dchi2, 2), np.tile([0, 1], len(dchi2))
    noise = np.random.default_rng(seed).normal(size=d.size)
    return (y - 0.5) * d + np.sqrt(d) * noise, y, np.repeat(np.arange(len(dchi2)), 2)


def scored(sigma=0.1, blur=1.0, pairs=150, seed=3):
    """Network = ideal observer blurred by noise of its own; the same events at any `sigma`."""
    curves = toy_set(pairs, sigma=sigma, seed=seed, shuffle=False)
    ratio = ideal_log_ratio(curves)
    p = ratio + blur * np.random.default_rng(seed).standard_normal(ratio.size)
    p = 1 / (1 + np.exp(-np.clip(p, -500, 500)))
    epochs = np.isfinite(curves.X).sum(axis=1)
    return Scores(y=curves.y, pair=curves.pair, dchi2=curves.dchi2, epochs=epochs, p=p, ideal=ratio)
