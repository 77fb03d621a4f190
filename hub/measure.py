"""Memory and time of a user's server and of chapters, written to hub/measured.json.

python hub/measure.py [--size smoke] [CHAPTER ...]      psutil is needed besides lensml

Memory is the sum of PSS over a process and its children, twice a second; its highest is kept.
Each chapter runs in a kernel of its own, first without compiled code and sets, then `again` with
both. Rows of other calls are kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

from lensml.experiments import make_project, provenance

RECORD = Path(__file__).resolve().parent / "measured.json"


def memory(process: psutil.Process) -> float:
    """Memory of a process and its children [MB]; pages that several share are counted once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total / 1e6


def server() -> float:
    """Memory of JupyterLab's server without a kernel [MB], ten seconds after its start."""
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "--ip=127.0.0.1"], **quiet)
    time.sleep(10)
    found = memory(psutil.Process(process.pid))
    process.terminate()
    process.wait()
    return found


def run_chapter(path: Path, size: str) -> dict[str, float]:
    """Run a chapter in a new kernel; its highest memory [MB] and its time [s]."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace('size = "smoke"', f'size = "{size}"')
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": path.parent}})
    done, highest = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.5):
            highest[0] = max(highest[0], sum(map(memory, psutil.Process().children())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.time()
    try:
        client.execute()
    finally:
        done.set()
        watcher.join()
    return {"memory_mb": round(highest[0]), "time_s": round(time.time() - started)}


def table(record: dict) -> str:
    """What README.md shows of the record, as Markdown."""
    lines = ["| what runs | highest memory | first time | again |", "|---|---|---|---|"]
    lines.append(f"| JupyterLab's server, no kernel | {record['server_mb'] / 1e3:.2f} GB | | |")
    for name, sizes in sorted(record["chapters"].items()):
        for size, row in sizes.items():
            times = f"{row['time_s']} s | {row['again_s']} s"
            lines.append(f"| `{name}`, `{size}` | {row['memory_mb'] / 1e3:.2f} GB | {times} |")
    return "\n".join(lines)


def main() -> None:
    """Measure in a new project, and add to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="smoke")
    parser.add_argument("chapters", nargs="*", default=["01", "08", "14"])
    args = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"chapters": {}}
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder) / "project")
        os.environ["LENSML_PROJECT"] = str(project)
        record["server_mb"] = round(server())
        for number in args.chapters:
            (path,) = (project / "notebooks").glob(f"{number}_*.ipynb")
            os.environ["NUMBA_CACHE_DIR"] = f"{folder}/compiled/{number}"
            first, again = run_chapter(path, args.size), run_chapter(path, args.size)
            row = first | {"again_s": again["time_s"]}
            record["chapters"].setdefault(path.stem, {})[args.size] = row
    record["provenance"] = provenance(size=args.size, seed=0, started=started)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


if __name__ == "__main__":
    main()
