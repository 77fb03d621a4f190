"""What a wheel has besides the package: a project, the commit of its code, and stubs of types."""

import ast
import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
# As `PROJECT_FILES` of lensml.experiments.book, which cannot be imported before it is installed.
PROJECT = (
    *("_config.yml", "_toc.yml", "notebooks", "book", "figures", "workflow"),
    *("data/README.md", "data/results", "README.md", "CITATION.cff"),
)
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "records")


def stub(init: Path, package: str) -> str:
    """Public names of a package, which it imports on first use, as a type checker reads them."""
    calls = (n for n in ast.walk(ast.parse(init.read_text())) if isinstance(n, ast.Call))
    (listed,) = (call for call in calls if getattr(call.func, "id", "") == "exports")
    lines, public = ["__version__: str"] if package == "lensml" else [], []
    for part in listed.keywords:
        names = ast.literal_eval(part.value).split()
        lines += [f"from {package}.{part.arg} import {name} as {name}" for name in names]
        public += names
    return "\n".join([*lines, f"__all__ = {sorted(public)}"]) + "\n"


class BuildWithProject(build_py):
    """Copies chapters and book beside the modules; an editable installation has its checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "lensml"
        for init in package.rglob("__init__.py"):
            name = ".".join(init.parent.relative_to(self.build_lib).parts)
            init.with_suffix(".pyi").write_text(stub(init, name))
        for name in PROJECT:
            source, target = HERE / name, package / "project" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=NOT_COPIED, dirs_exist_ok=True)
            elif source.exists():
                shutil.copyfile(source, target)
        command = ["git", "-c", f"safe.directory={HERE}", "rev-parse", "HEAD"]
        found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        if commit := found.stdout.strip():
            (package / "commit.txt").write_text(commit + "\n")


setup(cmdclass={"build_py": BuildWithProject})
