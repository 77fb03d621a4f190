"""lensml: can a causal 1-D CNN tell, while an event unfolds, whether the lens is binary?

A gravitational microlensing event is simulated (`lensing`, `simulation`), seen by a causal network
(`network`, `training`), asked about epoch by epoch (`streaming`) and judged against the ideal
observer (`evaluation`); `experiments` makes the thesis' chapters of it.

    import lensml as lm

    curves = lm.load(lm.simulate("set.npz", lm.Simulation(num_pairs=100)))
    network, _ = lm.load_network()
    p = lm.predict_proba(network, curves)  # P(binary) at every epoch
"""

from lensml._exports import exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = exports(
    __name__,
    photometry="read_photometry",
    lensing="BinaryLens PointLens binary_magnification fit_pspl",
    simulation="LightCurves Simulation Survey load simulate",
    network="classify load_network predict predict_proba",
    training="TrainingConfig train",
    streaming="StreamingClassifier",
    experiments="evaluate",
)
