"""Servers as jobs of SLURM: a user chooses cores, memory and GPUs by a profile."""

import batchspawner  # noqa: F401  (it adds the address at which a job says where its server is)

c = get_config()  # noqa: F821

# What each asks of SLURM; README.md has the memory that was measured. Partitions and the names of
# `gres` are the site's.
PROFILES = {
    "cpu": ("CPU: 2 cores", {"nprocs": "2", "memory": "4G", "partition": "", "gres": ""}),
    "gpu": ("1 GPU", {"nprocs": "8", "memory": "32G", "partition": "gpu", "gres": "gpu:1"}),
    "gpus": ("4 GPUs", {"nprocs": "32", "memory": "128G", "partition": "gpu", "gres": "gpu:4"}),
    "rocm": ("1 GPU, ROCm", {"nprocs": "8", "memory": "32G", "partition": "amd", "gres": "gpu:1"}),
}
RUNTIME = "12:00:00"
# Where the environment of another device lies; LENSML_PREFIX for those not named.
PREFIXES = {"rocm": "/opt/lensml-rocm"}


def choices(spawner) -> str:
    """The form above the start button."""
    options = [f'<option value="{key}">{label}</option>' for key, (label, _) in PROFILES.items()]
    return f'<label>Resources <select name="profile">{"".join(options)}</select></label>'


def chosen(form: dict) -> dict:
    """The profile that a form names; the first without one."""
    return {"profile": form.get("profile", ["cpu"])[0]}


def apply(spawner, options: dict) -> None:
    """Ask SLURM for what the profile says; another name is refused."""
    name = options.get("profile", "cpu")
    if name not in PROFILES:
        raise ValueError(f"no profile {name!r}; there are {', '.join(PROFILES)}")
    for key, value in PROFILES[name][1].items():
        setattr(spawner, f"req_{key}", value)
    if name in PREFIXES:
        spawner.cmd = [f"{PREFIXES[name]}/bin/jupyterhub-singleuser"]


c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"
c.JupyterHub.hub_ip = "0.0.0.0"  # compute nodes answer to the hub
c.Spawner.start_timeout = 600  # [s] in the queue
c.Spawner.http_timeout = 120
c.Spawner.options_form = choices
c.Spawner.options_from_form = chosen
c.Spawner.apply_user_options = apply
c.SlurmSpawner.req_runtime = RUNTIME
c.SlurmSpawner.req_srun = ""  # `lensml train` starts one process a GPU by itself
