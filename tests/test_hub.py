"""Binder's environment, links and profiles of a hub; a JupyterHub in which a chapter runs."""

import asyncio
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect
from traitlets.config import PyFileConfigLoader

from lensml.experiments import make_project

ROOT = Path(__file__).resolve().parent.parent
HUB = ROOT / "hub"
CHAPTER = "notebooks/08_physical_limits.ipynb"
TOKEN = uuid.uuid4().hex


def test_binder_installs_what_the_package_names_on_one_python_it_supports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *plain, pip = yaml.safe_load((ROOT / ".binder/environment.yml").read_text())["dependencies"]
    python = re.fullmatch(r"python=(3\.\d+)", plain[0])  # repo2docker reads no other form
    assert python and python[1] in SpecifierSet(project["requires-python"])
    named = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert set(pip["pip"]) <= set(named)
    script = ROOT / ".binder/postBuild"
    assert os.access(script, os.X_OK)
    install = next(x for x in script.read_text().splitlines() if "pip install" in x)
    assert "--constraint constraints.local.txt" in install
    assert "--editable '.[notebooks]'" in install
    assert any(x.startswith("pytorch-cpu") for x in plain)  # in place of the pinned one, for CUDA


def test_the_environment_of_a_hub_has_the_filter_that_a_checkout_has():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    test = {Requirement(line).name: line for line in named["optional-dependencies"]["test"]}
    lines = [x.partition("  #")[0] for x in (HUB / "requirements.txt").read_text().splitlines()]
    added = {Requirement(x).name: x for x in lines if not x.startswith("#")}
    assert added["nbstripout"] == test["nbstripout"]


def test_links_take_the_address_of_the_hub_and_of_the_repository():
    links = runpy.run_path(str(HUB / "links.py"))
    where = ("https://git.example.com/me/thesis.git", "main", CHAPTER)
    link = links["hub_link"]("https://hub.example.com/", *where)
    assert link == (
        "https://hub.example.com/hub/user-redirect/git-pull?repo=https%3A%2F%2Fgit.example.com"
        "%2Fme%2Fthesis.git&branch=main&urlpath=lab%2Ftree%2Fthesis%2Fnotebooks"
        "%2F08_physical_limits.ipynb"
    )


def test_the_table_of_memory_is_that_of_its_record():
    record = json.loads((HUB / "measured.json").read_text())
    assert (
        runpy.run_path(str(HUB / "measure.py"))["table"](record) in (HUB / "README.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "is an example; give --hub"),
        (["--hub", "https://hub.example.com", "99"], "no chapter 99; there are 00_preflight"),
    ],
)
def test_links_refuse_an_example_and_an_unknown_chapter(arguments, answer):
    command = [sys.executable, str(HUB / "links.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and answer in done.stderr


def test_profiles_of_kubernetes_ask_for_the_device_of_their_image():
    user = yaml.safe_load((HUB / "values.yaml").read_text())["singleuser"]
    profiles = {p["slug"]: p for p in user["profileList"]}
    assert [slug for slug, p in profiles.items() if p.get("default")] == ["cpu"]
    device = {"cuda": "nvidia.com/gpu", "rocm": "amd.com/gpu"}
    for slug in ("gpu", "gpus", "rocm"):
        asked = profiles[slug]["kubespawner_override"]
        resource = device[asked["image"].partition(":")[2]]
        assert asked["extra_resource_limits"] == {resource: "1"}
        for choice in profiles[slug].get("profile_options", {}).get("gpus", {}).get("choices", {}):
            more = profiles[slug]["profile_options"]["gpus"]["choices"][choice]
            limits = more["kubespawner_override"]["extra_resource_limits"]
            assert limits == {resource: more["display_name"]}


@pytest.mark.skipif(find_spec("batchspawner") is None, reason="needs batchspawner")
def test_profiles_of_slurm_become_lines_of_a_job_and_unknown_ones_are_refused():
    from batchspawner import SlurmSpawner
    from jinja2 import Template

    config = PyFileConfigLoader("slurm_config.py", path=str(HUB)).load_config()
    given = {"req_username": "a", "req_homedir": "/home/a", "req_keepvars": "PATH"}
    spawner = SlurmSpawner(config=config, cmd=["jupyterhub-singleuser"], **given)
    choose = config.Spawner.apply_user_options
    choose(spawner, config.Spawner.options_from_form({"profile": ["gpus"]}))
    asked = {x: getattr(spawner, x) for x in spawner.trait_names() if x.startswith("req_")}
    asked = {name.removeprefix("req_"): value for name, value in asked.items()}
    script = Template(spawner.batch_script).render(asked)
    for line in ("--gres=gpu:4", "--cpus-per-task=32", "--mem=128G", "--time=12:00:00"):
        assert f"#SBATCH {line}\n" in script
    choose(spawner, {})
    assert spawner.req_gres == ""
    with pytest.raises(ValueError, match="no profile 'x'; there are cpu, gpu, gpus, rocm"):
        choose(spawner, {"profile": "x"})


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def ask(address: str, data: dict | None = None, method: str | None = None) -> tuple[int, dict]:
    """Status and answer of an address of the hub or of a user's server."""
    body = None if data is None else json.dumps(data).encode()
    head = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(address, body, head, method=method), timeout=60
    ) as answer:
        return answer.status, json.loads(answer.read() or b"{}")


CONFIGURATION = """
load_subconfig({config!r})
c.JupyterHub.bind_url = "http://127.0.0.1:{ports[0]}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{ports[1]}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{ports[2]}"
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = {token!r}
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {home!r}
c.Spawner.ip = "127.0.0.1"
c.Spawner.args += ["--allow-root"]
c.Spawner.environment["PYTHONPATH"] = {root!r}
c.JupyterHub.services += [{{"name": "test", "api_token": {token!r}}}]
scopes = ["admin:users", "admin:servers", "access:servers"]
c.JupyterHub.load_roles += [{{"name": "test", "scopes": scopes, "services": ["test"]}}]
"""


@pytest.fixture
def server(tmp_path):
    """Address of the server of a user who has a project, in a hub with the settings of `hub/`."""
    needed = [find_spec(x) for x in ("jupyterhub", "jupyterhub_idle_culler", "jupyter_server")]
    if None in needed or not shutil.which("configurable-http-proxy"):
        pytest.skip("needs jupyterhub, jupyterhub-idle-culler and configurable-http-proxy")
    home, ports = tmp_path / "home", free_ports(3)
    make_project(home / "thesis")
    values = {"ports": ports, "token": TOKEN, "home": str(home), "root": str(ROOT)}
    text = CONFIGURATION.format(config=str(HUB / "jupyterhub_config.py"), **values)
    (tmp_path / "config.py").write_text(text)
    environment = os.environ | {"LENSML_PREFIX": sys.prefix}
    environment.pop("LENSML_PROJECT", None)
    log = (tmp_path / "log").open("w")
    hub = subprocess.Popen(
        [sys.executable, "-m", "jupyterhub", "-f", "config.py"],
        cwd=tmp_path,
        env=environment,
        stdout=log,
        stderr=log,
    )
    address = f"http://127.0.0.1:{ports[0]}"
    try:
        wait_for(lambda: ask(f"{address}/hub/api/")[0] == 200, hub, tmp_path / "log")
        ask(f"{address}/hub/api/users/alice", {}, "POST")
        ask(f"{address}/hub/api/users/alice/server", {}, "POST")

        def ready() -> bool:
            return ask(f"{address}/hub/api/users/alice")[1]["servers"].get("", {}).get("ready")

        wait_for(ready, hub, tmp_path / "log")
        yield SimpleNamespace(address=f"{address}/user/alice", home=home)
        ask(f"{address}/hub/api/users/alice/server", method="DELETE")
    finally:
        hub.terminate()
        hub.wait(60)
        log.close()


def wait_for(what, process: subprocess.Popen, log: Path) -> None:
    """Until it is so; the log of a process that ends or takes more than two minutes is shown."""
    for _ in range(240):
        try:
            if what():
                return
        except urllib.error.URLError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.5)
    pytest.fail(log.read_text()[-3000:])


async def execute(socket_address: str, sources: list[str]) -> list[dict]:
    """What a kernel answers to each piece of code: its reply, and all it printed."""
    request = HTTPRequest(socket_address, headers={"Authorization": f"token {TOKEN}"})
    connection = await websocket_connect(request)
    answers = []
    for source in sources:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "test"}
        header |= {"username": "", "version": "5.3"}
        content = {"code": source, "silent": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        await connection.write_message(json.dumps(message | {"channel": "shell"}))
        answer = {"text": ""}
        while "status" not in answer or not answer.get("idle"):
            found = json.loads(await asyncio.wait_for(connection.read_message(), 300))
            if found["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            content = found["content"]
            answer["text"] += content.get("text", "") if found["msg_type"] == "stream" else ""
            if found["msg_type"] == "execute_reply":
                answer |= content
            if found["msg_type"] == "status":
                answer["idle"] = content["execution_state"] == "idle"
        answers.append(answer)
    connection.close()
    return answers


def test_a_chapter_opens_and_its_kernel_answers_in_a_hub(server):
    """With the kernel that the chapter names, in the user's own project."""
    _, page = ask(f"{server.address}/api/contents/thesis/{CHAPTER}")
    chapter = nbformat.from_dict(page["content"])
    name = chapter.metadata.kernelspec.name
    _, kernels = ask(f"{server.address}/api/kernelspecs")
    assert name in kernels["kernelspecs"]
    wanted = {"path": f"thesis/{CHAPTER}", "name": "", "type": "notebook", "kernel": {"name": name}}
    _, session = ask(f"{server.address}/api/sessions", wanted)
    code = [cell.source for cell in chapter.cells if cell.cell_type == "code"][:2]
    code += ["from lensml import paths; print(paths.ROOT, paths.PACKAGE)"]
    code += ["import os; print(os.environ['GIT_CONFIG_VALUE_0'])"]
    channel = f"{server.address}/api/kernels/{session['kernel']['id']}/channels"
    answers = asyncio.run(execute(channel.replace("http", "ws", 1), code))
    assert [answer["status"] for answer in answers] == ["ok"] * len(code), answers
    assert answers[2]["text"].split() == [str(server.home / "thesis"), str(ROOT / "lensml")]
    assert answers[3]["text"].strip() == f"{sys.prefix}/etc/gitconfig"
