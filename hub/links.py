"""Links that open a chapter on a hub, where nbgitpuller makes or updates a clone, or on Binder.

python hub/links.py --hub https://hub.example.org [--repository URL] [--branch main] [CHAPTER ...]

Without --hub and --repository: those of _config.yml, from which the book makes its buttons.
"""

import argparse
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent


def hub_link(hub: str, repository: str, branch: str, file: str) -> str:
    """Address that starts a user's server, clones or updates the repository and opens a file."""
    folder = repository.rstrip("/").rpartition("/")[2].removesuffix(".git")
    where = {"repo": repository, "branch": branch, "urlpath": f"lab/tree/{folder}/{file}"}
    return f"{hub.rstrip('/')}/hub/user-redirect/git-pull?{urlencode(where)}"


def binder_link(binder: str, repository: str, branch: str, file: str) -> str:
    """Address that opens a file of a GitHub repository on Binder."""
    name = urlsplit(repository).path.strip("/").removesuffix(".git")
    return (
        f"{binder.rstrip('/')}/v2/gh/{name}/{branch}?{urlencode({'urlpath': f'lab/tree/{file}'})}"
    )


def main() -> None:
    """Print a Markdown table of links."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text())
    buttons, source = settings["launch_buttons"], settings["repository"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hub", default=buttons["jupyterhub_url"], help="address of the hub")
    parser.add_argument("--binder", default=buttons["binderhub_url"], help="address of Binder")
    parser.add_argument("--repository", default=source["url"], help="what is cloned")
    parser.add_argument("--branch", default=source["branch"])
    parser.add_argument("chapters", nargs="*", help="01, 14, ...; all without one")
    args = parser.parse_args()
    if "example.org" in args.hub:
        parser.error(f"{args.hub} is an example; give --hub, or set jupyterhub_url in _config.yml")
    known = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
    if missing := [c for c in args.chapters if not any(name.startswith(c) for name in known)]:
        parser.error(f"no chapter {', '.join(missing)}; there are {', '.join(known)}")
    print("| chapter | hub | Binder |\n|---|---|---|")
    for name in known:
        if not args.chapters or name.startswith(tuple(args.chapters)):
            where = (args.repository, args.branch, f"notebooks/{name}.ipynb")
            hub, binder = hub_link(args.hub, *where), binder_link(args.binder, *where)
            print(f"| `{name}` | [open]({hub}) | [open]({binder}) |")


if __name__ == "__main__":
    main()
