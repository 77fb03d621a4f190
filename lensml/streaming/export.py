"""The stream's step outside of torch: ONNX graphs, one a depth, run by onnxruntime.

    python -m lensml.streaming.export RUN    writes RUN/step, which `lensml stream --model RUN` uses

A single update calls for many small operations, and onnxruntime spends a quarter of torch's time
on them; in large batches both are as fast, and torch is used. Writing needs the extra `onnx`,
running only onnxruntime; without it the stream runs as it does without an export.
"""

import json
import logging
import shutil
import sys
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from lensml.network import NUM_INNOVATIONS, PATCH_SIZE, Network, fingerprint, load_network
from lensml.paths import WEIGHTS, InputError, atomic_path
from lensml.streaming.step import Step

__all__ = ["ExportedStep", "export_step", "exported_step"]

FOLDER = "step"  # beside the weights of a run
NOTES = "step.json"  # written last: with it the folder is whole
SMALL = 32  # rows above which torch is as fast


class _AtDepth(nn.Module):
    """A step whose events all complete the same levels, given as one tuple."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(
        self, features: Tensor, near: Tensor, context: Tensor, levels: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return self.step(features, near, context, *levels)


def example_inputs(network: Network, depth: int, rows: int = 8) -> tuple[Tensor, ...]:
    """Inputs of `Step` for events that complete `depth` levels, normally distributed."""
    config, generator = network.config, torch.Generator().manual_seed(depth)
    further = NUM_INNOVATIONS + config.channels if config.embedding_channels else 0
    shapes = [
        (config.num_features + further,),
        (2 * len(network.stem) + PATCH_SIZE - 1, config.stem_channels),
        (config.channels,),
    ]
    blocks = config.encoder_blocks + config.decoder_blocks
    for level in range(depth):
        singles = 2 if level + 1 < config.num_levels else 0
        shapes.append((2 * blocks + singles, config.channels))
    return tuple(torch.randn(rows, *shape, generator=generator) for shape in shapes)


def exported_program(network: Network, depth: int) -> torch.export.ExportedProgram:
    """`Step` at one depth as a graph whose number of events is free."""
    *flat, levels = (*(x := example_inputs(network, depth))[:3], x[3:])
    many = {0: torch.export.Dim("events", min=2)}
    with torch.no_grad():
        return torch.export.export(
            _AtDepth(Step(network.cpu().eval())).eval(),
            (*flat, levels),
            dynamic_shapes=(many, many, many, tuple(many for _ in levels)),
        )


def export_step(network: Network, folder: Path) -> Path:
    """Write one ONNX graph for each depth, and whose they are.

    Args:
        network: The classifier.
        folder: Where to; replaced if it holds an earlier export.

    Returns:
        The folder.

    Raises:
        InputError: If the extra `onnx` is not installed.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise InputError(
            f"{' and '.join(missing)} missing, without which no ONNX can be written; "
            "pip install 'lensml[onnx]'"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTES).unlink(missing_ok=True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, nobody else
    for depth in range(network.config.num_levels + 1):
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = exported_program(network, depth)
            graph = torch.onnx.export(program, dynamo=True, verbose=False)
            graph.save(Path(scratch) / "step.onnx")
            with atomic_path(folder / f"step{depth}.onnx") as temporary:
                shutil.copyfile(Path(scratch) / "step.onnx", temporary)
    notes = {"network": fingerprint(network), "depths": network.config.num_levels + 1}
    with atomic_path(folder / NOTES) as temporary:
        temporary.write_text(json.dumps(notes) + "\n")
    return folder


class ExportedStep:
    """`Step` by onnxruntime for few events and by torch for many; called like `Step`."""

    min_rows = 1

    def __init__(self, network: Network, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.step, self.network = Step(network), network
        self.sessions = [
            onnxruntime.InferenceSession(
                str(folder / f"step{depth}.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for depth in range(network.config.num_levels + 1)
        ]
        self.names = [[x.name for x in session.get_inputs()] for session in self.sessions]

    def __call__(
        self, features: Tensor, near: Tensor, context: Tensor, *levels: Tensor, rows: list[int]
    ) -> tuple[Tensor, ...]:
        if len(features) > SMALL:
            return self.step(features, near, context, *levels, rows=rows)
        inputs = [x.numpy() for x in (features, near, context, *levels)]
        # Rows that complete exactly `depth` levels lie behind those that complete more.
        edges = [len(features), *rows, 0]
        parts: list[list] = [[] for _ in range(2 + 2 * len(levels))]
        for depth in reversed(range(len(edges) - 1)):
            first, last = edges[depth + 1], edges[depth]
            if first == last:
                continue
            given = [x[first:last] for x in inputs[: 3 + depth]]
            done = self.sessions[depth].run(None, dict(zip(self.names[depth], given, strict=True)))
            for part, values in zip(parts, done, strict=False):
                part.append(torch.from_numpy(values))
        return tuple(part[0] if len(part) == 1 else torch.cat(part) for part in parts)


def exported_step(network: Network, run: Path | str | None = None) -> ExportedStep | None:
    """The export that lies in a run's folder; None where there is none or it cannot be run.

    Raises:
        InputError: If it was made from other weights.
    """
    folder = (WEIGHTS if run is None else Path(run)) / FOLDER
    if not (folder / NOTES).exists() or find_spec("onnxruntime") is None:
        return None
    notes = json.loads((folder / NOTES).read_text())
    if notes.get("network") != fingerprint(network):
        raise InputError(
            f"{folder}: made from other weights than those beside it; remove it, or make it anew "
            f"with `python -m lensml.streaming.export {folder.parent}`"
        )
    return ExportedStep(network, folder)


def main(arguments: list[str]) -> int:
    """Export the network of a run folder."""
    if len(arguments) != 1:
        print("usage: python -m lensml.streaming.export RUN", file=sys.stderr)
        return 2
    try:
        print(export_step(load_network(arguments[0])[0], Path(arguments[0]) / FOLDER))
    except InputError as error:
        print(f"lensml.streaming.export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
