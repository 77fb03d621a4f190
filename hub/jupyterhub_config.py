"""JupyterHub on one machine, or with servers as jobs of SLURM; one environment for all users.

    LENSML_PREFIX=/opt/lensml jupyterhub -f hub/jupyterhub_config.py

Who may log in, addresses and certificates are the site's own: load this file from a configuration
of yours, `load_subconfig("/srv/lensml/hub/jupyterhub_config.py")`, and set the rest after it.
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821
PREFIX = Path(os.environ.get("LENSML_PREFIX", "/opt/lensml"))  # as given to install.sh
HOURS = 3600  # [s]

c.Spawner.cmd = [f"{PREFIX}/bin/jupyterhub-singleuser"]
c.Spawner.default_url = "/lab"
c.Spawner.notebook_dir = "~"
c.Spawner.start_timeout = 120  # [s]
c.Spawner.environment = {
    "PATH": f"{PREFIX}/bin:/usr/local/bin:/usr/bin:/bin",
    # Git reads the filter for notebooks from here, whoever made the clone.
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "include.path",
    "GIT_CONFIG_VALUE_0": f"{PREFIX}/etc/gitconfig",
}
if cache := os.environ.get("LENSML_DATA"):  # test sets that all users share
    c.Spawner.environment["LENSML_DATA"] = cache

# A kernel that computes is never culled; one that is idle holds a GPU and gigabytes.
c.Spawner.args = [
    f"--MappingKernelManager.cull_idle_timeout={2 * HOURS}",
    "--MappingKernelManager.cull_interval=300",
    "--MappingKernelManager.cull_connected=True",
]
cull = f"--timeout={3 * HOURS} --cull-every=300".split()
c.JupyterHub.services = [
    {"name": "idle-culler", "command": [sys.executable, "-m", "jupyterhub_idle_culler", *cull]}
]
c.JupyterHub.load_roles = [
    {
        "name": "idle-culler",
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
        "services": ["idle-culler"],
    }
]
if os.environ.get("LENSML_SPAWNER") == "slurm":
    load_subconfig("slurm_config.py")  # noqa: F821
