"""What compilers make of the GPU kernels, without a GPU: registers, spills, shared memory.

    python -m benchmarks.performance.kernels [--quick]

Compiles each kernel of fits and inputs for NVIDIA's sm_90 (Hopper) and AMD's gfx942 (MI300), as
training (float32) and evaluation (float64) call them. What is printed needs Triton alone; times on
a device are `python -m benchmarks.gpu_program`.
"""

import argparse
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.record import save_record
from lensml.lensing import _triton_fits
from lensml.network import _triton_inputs

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
WHOLE = {"N", "B", "K", "J"}
INTEGERS = set("LOW HIGH FREE REFITS COUNTS ROWS OWNER PLACE TOTAL".split())
SINGLE = {"MAPS", "SUMMARIES", "STATES", "OUT"}  # float32 whatever the precision
REFIT = {"TILE": 64, "BIN_TILE": 32}
GRID = REFIT | {"MODELS": 1, "BASES": False, "SETS": 1}
SKY = REFIT | {"MODELS": 2, "BASES": True, "SETS": 8}
VARIANTS = {  # name: kernel, precision, constants, warps
    "bins": (_triton_fits.bin_kernel, "fp32", {"TILE": 16, "BIN": 8}, 4),
    "refits": (_triton_fits.refit_kernel, "fp32", GRID, 1),
    "maps": (_triton_inputs.map_kernel, "fp32", {"SETS": 1, "TILE": 16}, 4),
    "innovations": (_triton_inputs.innovation_kernel, "fp32", {"TILE": 8}, 1),
    "refits_blended": (_triton_fits.refit_kernel, "fp32", GRID | {"MODELS": 2}, 1),
    "refits_of_8_sets": (_triton_fits.refit_kernel, "fp32", SKY, 1),
    "refits_double": (_triton_fits.refit_kernel, "fp64", GRID | {"MODELS": 2}, 1),
    "maps_double": (_triton_inputs.map_kernel, "fp64", {"SETS": 1, "TILE": 16}, 4),
}


def compiled(name: str, target: str) -> dict[str, float]:
    """Seconds, registers, spilled bytes or registers, and bytes of shared memory of a variant."""
    kernel, kind, constants, warps = VARIANTS[name]
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in WHOLE:
            signature[argument] = "i32"
        elif argument in INTEGERS:
            signature[argument] = "*i32"
        else:
            signature[argument] = "*fp32" if argument in SINGLE else f"*{kind}"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    started = time.perf_counter()
    made = triton.compile(source, target=TARGETS[target], options={"num_warps": warps})
    found = {"seconds": time.perf_counter() - started, "shared": made.metadata.shared}
    if target.startswith("sm"):
        usage = _resources(made.asm["cubin"])
        found["registers"] = int(re.search(r"REG:(\d+)", usage)[1])
        found["spilled"] = int(re.search(r"STACK:(\d+)", usage)[1])
    else:
        text = made.asm["amdgcn"]
        found["registers"] = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])
        found["spilled"] = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1])
    return found


def _resources(code: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """Compile, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first four variants")
    args = parser.parse_args()
    started, numbers = time.time(), {}
    for name in list(VARIANTS)[: 4 if args.quick else None]:
        for target in TARGETS:
            for what, value in compiled(name, target).items():
                numbers[f"{name}_{target}_{what}"] = value
    save_record(
        "kernels", numbers, seed=0, started=started, quick=args.quick, triton=triton.__version__
    )


if __name__ == "__main__":
    main()
