"""Whatever comes in, an answer comes out or one line: no traceback, no NaN, no second line."""

import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from lensml.experiments import literal
from lensml.network import load_network
from lensml.paths import WEIGHTS, InputError
from lensml.simulation import Simulation, Survey, load, simulate
from lensml.streaming import StreamingClassifier, answer_lines
from lensml.training import load_training_data


def strict_json(text: str) -> object:
    """JSON without NaN and infinities."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


NETWORK = load_network()[0]
NUMBER = st.one_of(
    st.floats(), st.integers(), st.sampled_from([0, -1, 99.999, 1e-300, 1e300, 2**70, 1e39])
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | st.text(max_size=8),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=6), x, max_size=4),
    max_leaves=8,
)
CURVE = "time,mag,mag_err,filter\n" + "\n".join(
    f"{2457000 + 0.7 * k:.4f},{18 - 2 * np.exp(-((k - 12) ** 2) / 30):.3f},0.02,{'VI'[k % 2]}"
    for k in range(24)
)
CUTS = st.lists(
    st.tuples(st.integers(0, len(CURVE)), st.integers(0, 12), st.text(max_size=6)), max_size=8
)


def mutated(text: str, cuts: list[tuple[int, int, str]]) -> str:
    """A text with pieces taken out and others put in their places."""
    for place, length, new in cuts:
        text = text[:place] + new + text[place + length :]
    return text


def test_light_curves(tried, tmp_path):
    path = tmp_path / "curve.csv"
    marks = st.sampled_from(["nan", "1D3", "<18", '"'])
    odd = st.one_of(NUMBER.map(str), st.text(max_size=8), marks)
    rows = st.lists(st.lists(odd, min_size=1, max_size=6).map(",".join), max_size=30)
    heads = ["", "time,mag,mag_err\n", "hjd [d],flux_uJy,flux_err\n", "#" + "(" * 99]
    head = st.sampled_from(heads)
    path.write_text(CURVE)
    tried.verb("classify", path, "--json")
    made = st.tuples(head, rows).map(lambda x: x[0] + "\n".join(x[1]))

    @given(st.one_of(CUTS.map(lambda cuts: mutated(CURVE, cuts)), made))
    def run(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        for line in tried.verb("classify", path, "--json").splitlines():
            strict_json(line)

    tried.search(run)


EPOCH = st.fixed_dictionaries(
    {"event": st.sampled_from(["a", "b", 1, "1"]), "time": st.integers(0, 50) | NUMBER},
    optional={"mag": st.floats(10, 22) | NUMBER, "mag_err": st.floats(0.01, 1) | NUMBER,
              "m_base": JSON, "dataset": JSON, "outcome": JSON, "ledger": JSON},
)  # fmt: skip


def test_stream_lines(tried):
    good = st.fixed_dictionaries(
        {"event": st.sampled_from(["a", "b", "c", "d", 1, "1"]), "time": st.floats(0, 1000),
         "mag": st.floats(14, 20), "mag_err": st.floats(0.01, 0.5)}
    )  # fmt: skip
    line = (
        good.map(json.dumps) | EPOCH.map(json.dumps) | JSON.map(json.dumps) | st.text(max_size=30)
    )

    def answer(lines):
        with tried.one():
            stream = StreamingClassifier(NETWORK, max_events=3)
            replies = list(answer_lines(stream, [line.replace("\n", " ") for line in lines]))
        for reply, problem in replies:
            strict_json(json.dumps(reply))
            tried.refused += bool(problem)
            tried.answered += not problem

    epoch = {"event": "a", "mag": 18, "mag_err": 0.1}
    answer([json.dumps(epoch | {"time": k}) for k in range(50)])
    tried.search(given(st.lists(line, max_size=20))(lambda lines: answer(lines)), lines=8)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "set.npz"
    survey = Survey(num_epochs=40)
    return simulate(path, Simulation(num_pairs=2, survey=survey), workers=1, progress=False)


def test_sets(tried, small, tmp_path):
    with np.load(small) as file:
        members = dict(file)
    path, names = tmp_path / "set.npz", st.sampled_from(sorted(members))
    kinds = st.sampled_from(["?", "i1", "u8", "f4", "f8", "c16", "U3", "S3"])
    keys = ["seed", "survey", "blending", "num_events"]
    value = st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e39, 1e300])
    change = st.one_of(
        st.tuples(st.just("value"), names, value),
        st.tuples(st.just("all"), names, value),
        st.tuples(st.just("type"), names, kinds),
        st.tuples(st.just("shape"), names, st.lists(st.integers(0, 3), max_size=3)),
        st.tuples(st.just("drop"), names, st.none()),
        st.tuples(st.just("meta"), names, JSON),
        st.tuples(st.just("key"), st.sampled_from(keys), JSON),
    )

    def changed(found, kind, name, what):
        if kind == "drop":
            found.pop(name, None)
        elif kind == "meta":
            found["meta"] = np.array(json.dumps(what))
        elif kind == "key":
            meta = json.loads(str(members["meta"]))
            found["meta"] = np.array(json.dumps(meta | {name: what}))
        elif kind == "shape":
            found[name] = np.resize(found[name], what) if name in found else np.zeros(what)
        elif name in found and found[name].size and found[name].dtype.kind in "fiu":
            with np.errstate(all="ignore"):
                x = found[name].astype(float)
                x[... if kind == "all" else (0,) * x.ndim] = what if kind != "type" else 0
                found[name] = x.astype(what if kind == "type" else found[name].dtype)

    @given(st.lists(change, min_size=1, max_size=2), st.integers(0, 3), st.data())
    def run(changes, damage, data):
        found = dict(members)
        for each in changes:
            try:
                changed(found, *each)
            except (ValueError, TypeError):  # numpy itself makes no such array
                return
        np.savez(path, **found)
        raw = bytearray(path.read_bytes())
        for _ in range(damage):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        for read in (load, lambda p: load_training_data([p], 0.5)):
            try:
                with tried.one():
                    read(path)
                tried.answered += 1
            except InputError as error:
                tried.refused += 1
                assert "\n" not in str(error)

    tried.search(run)


def test_run_folders(tried, tmp_path):
    run_folder = tmp_path / "run"
    shutil.copytree(WEIGHTS, run_folder)
    notes = {"network": NETWORK.config.describe(), "epoch": 1}
    tensors = NETWORK.state_dict()
    names = st.sampled_from(sorted(tensors))
    change = st.one_of(
        st.tuples(st.just("drop"), names, st.none()),
        st.tuples(st.just("shape"), names, st.lists(st.integers(0, 5), max_size=3)),
        st.tuples(st.just("nan"), names, st.sampled_from([np.nan, np.inf])),
        st.tuples(st.just("extra"), st.text(max_size=5), st.none()),
        st.tuples(st.just("note"), st.sampled_from([*notes["network"], "new"]), JSON),
        st.tuples(st.just("notes"), st.just(""), JSON),
        st.tuples(st.sampled_from(["config.json", "alerts.json"]), st.just(""), JSON),
    )

    @given(st.lists(change, min_size=1, max_size=2))
    def run(changes):
        mine, said, files = dict(tensors), json.loads(json.dumps(notes)), {}
        for kind, name, what in changes:
            if kind == "drop":
                mine.pop(name, None)
            elif kind == "shape":
                mine[name] = torch.zeros(what)
            elif kind == "nan" and name in mine:
                mine[name] = torch.full_like(mine[name], what)
            elif kind == "extra":
                mine[name] = torch.zeros(1)
            elif kind == "note" and isinstance(said, dict):
                said["network"] = notes["network"] | {name: what}
            elif kind == "notes":
                said = what
            elif kind.endswith("json"):
                files[kind] = what
        save_file(mine, run_folder / "model.safetensors", metadata={"notes": json.dumps(said)})
        for name in ("config.json", "alerts.json"):
            text = json.dumps(files[name]) if name in files else (WEIGHTS / name).read_text()
            (run_folder / name).write_text(text)
        from lensml.streaming import find_threshold

        for read in (load_network, find_threshold):
            try:
                with tried.one():
                    read(run_folder)
                tried.answered += 1
            except InputError as error:
                tried.refused += 1
                assert "\n" not in str(error)

    tried.search(run)


def test_states(tried, tmp_path):
    path = tmp_path / "state"
    stream = StreamingClassifier(NETWORK)
    for k in range(20):
        stream.update(f"e{k % 3}", float(k), 18.0, 0.1)
    stream.save(path)
    good = path.read_bytes()

    @given(st.lists(st.tuples(st.integers(0, len(good) - 1), st.binary(max_size=9)), max_size=3))
    def run(cuts):
        raw = good
        for place, new in cuts:
            raw = raw[:place] + new + raw[place + len(new) :]
        path.write_bytes(raw if len(cuts) < 3 else raw[: cuts[0][0]])
        try:
            with tried.one():
                StreamingClassifier(NETWORK).restore(path)
            tried.answered += 1
            assert raw == good
        except InputError as error:
            tried.refused += 1
            assert "\n" not in str(error)

    tried.search(run)


def test_parameters(tried):
    pieces = st.text(alphabet="('\"[]{},:;#\\\n _=.os1e9+-*ab", max_size=40)

    @given(pieces | JSON.map(repr) | JSON.map(lambda x: repr((x,))))
    def run(text):
        """A parameter is a value of JSON: papermill writes nothing else into a cell."""
        try:
            with tried.one():
                found = literal(text)
        except InputError as error:
            tried.refused += 1
            assert "\n" not in str(error)
            return
        tried.answered += 1
        assert json.loads(json.dumps(found, allow_nan=False)) == found

    tried.search(run)


def test_a_packed_bomb_is_refused_before_it_is_unpacked(tmp_path, small):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("X.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f4", "fortran_order": False, "shape": (100, 1_000_000)}
            )
            for _ in range(100):
                member.write(bytes(4_000_000))
    with pytest.raises(InputError, match="unpack to"):
        load(tmp_path / "bomb.npz")
