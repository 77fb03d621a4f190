"""A small matched set made without the simulator: bumps on single-lens curves, rows shuffled."""

import numpy as np

from lensml.dataset import LightCurves
from lensml.feed import answer_lines
from lensml.magnification import point_lens_magnification


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


def one_by_one(stream, lines):
    """Replies of a stream to lines that come one after the other."""
    return [reply for number, line in enumerate(lines, 1)
            for reply in answer_lines(stream, [line], number)]  # fmt: skip
