"""Alerts through a real Kafka client and its mock cluster, in real Avro: same answers as lines."""

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sets import photometry, random_network

from lensml.paths import InputError
from lensml.streaming import Broker, StreamingClassifier, answer_lines, packet_epochs, serve_alerts
from lensml.streaming.brokers import new_lines
from lensml.streaming.server import SnapshotScheduler

kafka = pytest.importorskip("confluent_kafka")
fastavro = pytest.importorskip("fastavro")


def record(name, fields):
    """An Avro record, each of its fields of a type or, if None came, a double that may be null."""
    fields = [{"name": k, "type": v or ["null", "double"]} for k, v in fields.items()]
    return {"type": "record", "name": name, "fields": fields}


NUMBERS = dict.fromkeys(("magpsf", "sigmapsf", "magnr", "sigmagnr", "distnr"))
DETECTION = {"jd": "double", "fid": "int", "isdiffpos": ["null", "string"]} | NUMBERS
ZTF = record("ztf.alert", {
    "objectId": "string", "candid": "long",
    "candidate": record("candidate", DETECTION | {"candid": "long"}),
    "prv_candidates": ["null", {"type": "array", "items": record("prv_candidate", DETECTION)}],
    "cutoutScience": ["null", "bytes"],
})  # fmt: skip
FLUXES = dict.fromkeys(("psfFlux", "psfFluxErr", "scienceFlux", "scienceFluxErr"))
FORCED = {"midpointMjdTai": "double", "band": ["null", "string"], "visit": "long"} | FLUXES
SOURCE = FORCED | {
    "diaObjectId": ["null", "long"], "templateFlux": None, "templateFluxErr": None,
    "psfFlux_flag": ["null", "boolean"],
}  # fmt: skip
RUBIN = record("lsst.alert", {
    "diaSourceId": "long",
    "diaSource": record("diaSource", SOURCE),
    "prvDiaSources": ["null", {"type": "array", "items": "diaSource"}],
    "prvDiaForcedSources": ["null", {"type": "array", "items": record("diaForcedSource", FORCED)}],
    "diaObject": ["null", record("diaObject", {"diaObjectId": "long"})],
})  # fmt: skip


def detection(time, mag, error, fid=2, reference=18.0):
    """A candidate whose total magnitude is `mag` +- `error`, beside a noiseless reference."""
    change = 10 ** (-0.4 * mag) - 10 ** (-0.4 * reference)
    magpsf = -2.5 * np.log10(abs(change))
    sigmapsf = error * 10 ** (-0.4 * mag) / abs(change)
    return {
        "jd": float(time), "fid": fid, "isdiffpos": "t" if change > 0 else "f", "candid": 1,
        "magpsf": float(magpsf), "sigmapsf": float(sigmapsf), "magnr": reference, "sigmagnr": 0.0,
        "distnr": 0.3,
    }  # fmt: skip


LIMIT = dict.fromkeys((*NUMBERS, "isdiffpos"))


def ztf_packets(event, length=40, seed=0, back=6):
    """Alerts of an event in two bands, each with its last `back` detections and an upper limit."""
    found, packets = [], []
    for k, (t, mag, error) in enumerate(zip(*photometry(length, seed), strict=True)):
        found.append(detection(t, mag, error, fid=1 + k % 2))
        limit = LIMIT | {"jd": t - 0.005, "fid": 1}
        earlier = [*found[-1 - back : -1][::-1], limit]  # the packet's own order does not matter
        packets.append({
            "objectId": event, "candid": k, "candidate": found[-1], "prv_candidates": earlier,
            "cutoutScience": b"\0" * 100,
        })  # fmt: skip
    return packets


def container(packet, schema=ZTF):
    body = io.BytesIO()
    fastavro.writer(body, fastavro.parse_schema(schema), [packet], codec="deflate")
    return body.getvalue()


def bare(packet, schema):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), packet)
    return body.getvalue()


@pytest.fixture(scope="module")
def cluster():
    """Address of a mock cluster in this process, and a function that writes to its topics."""
    owner = kafka.Producer({"test.mock.num.brokers": 1, "log_level": 2})
    (broker,) = owner.list_topics(timeout=10).brokers.values()
    address = f"{broker.host}:{broker.port}"
    writer = kafka.Producer({"bootstrap.servers": address, "log_level": 2})

    def write(topic, messages):
        for key, value, *partition in messages:
            writer.produce(topic, value, key, **({"partition": partition[0]} if partition else {}))
        assert writer.flush(20) == 0

    write("warm", [("a", b"")])
    yield address, write
    del owner


@pytest.fixture(scope="module")
def network():
    return random_network()


def read(address, topic, count=None, seconds=20):
    """Answers of a topic by the time they were written, until `count` are there or its end."""
    consumer = kafka.Consumer({
        "bootstrap.servers": address, "group.id": "reader", "enable.partition.eof": True,
        "auto.offset.reset": "earliest", "log_level": 2,
    })  # fmt: skip
    limit = time.monotonic() + seconds
    while not (parts := consumer.list_topics(topic, 10).topics[topic].partitions):
        assert time.monotonic() < limit
        time.sleep(0.1)
    consumer.assign([kafka.TopicPartition(topic, k, kafka.OFFSET_BEGINNING) for k in parts])
    found, ended = [], set()
    while time.monotonic() < limit and (len(found) < count if count else len(ended) < len(parts)):
        if (message := consumer.poll(0.5)) is None:
            continue
        if message.error():
            ended.add(message.partition())
            continue
        found.append((message.key() and message.key().decode(), json.loads(message.value())))
    consumer.close()
    assert all(key == answer["event"] for key, answer in found)
    return [answer for _, answer in found]


def serve(network, address, topic, state, *, part="", schema=None):
    """Answers, problems and exit code of the broker over what a topic holds."""
    problems, stream = io.StringIO(), StreamingClassifier(network)
    if state.exists():
        stream.restore(state)
    broker = Broker(address, [topic + part], f"{topic}-answers", schema)
    code = serve_alerts(stream, broker, problems, state, until_end=True)
    return read(address, f"{topic}-answers"), problems.getvalue().splitlines(), code


def lines_of(packets):
    """What an observer would pipe in: each epoch of the alerts once, with its total magnitude."""
    epochs = [epoch for packet in packets for epoch in packet_epochs(packet) if epoch.pop("new")]
    return [json.dumps(epoch) for epoch in epochs]


def by_epoch(answers):
    return {(a["event"], a["dataset"], a["time"]): a["p_binary"] for a in answers}


def expected(network, packets):
    answers = answer_lines(StreamingClassifier(network), lines_of(packets))
    assert not any(problem for _, problem in answers)
    return by_epoch(answer for answer, _ in answers)


def test_total_flux_is_reference_plus_or_minus_difference():
    """By hand: 10^(-0.4 x 18) = 6.3096e-8 and 10^(-0.4 x 19) = 2.5119e-8."""
    own = {"jd": 2460000.5, "fid": 2, "magpsf": 19.0, "sigmapsf": 0.1, "magnr": 18.0}
    own |= {"sigmagnr": 0.02, "distnr": 0.4}
    for sign, mag, error in (("t", 17.63615, 0.0318660), ("f", 18.55120, 0.0740201)):
        packet = {"objectId": "ZTF20a", "candidate": own | {"isdiffpos": sign}}
        (epoch,) = packet_epochs(packet)
        assert epoch["mag"] == pytest.approx(mag, abs=2e-5)
        assert epoch["mag_err"] == pytest.approx(error, rel=2e-5)
        assert (epoch["event"], epoch["dataset"], epoch["time"]) == ("ZTF20a", "r", 2460000.5)
        flat = {f"i:{k}": v for k, v in packet["candidate"].items()} | {"i:objectId": "ZTF20a"}
        assert packet_epochs(flat | {"d:cdsxmatch": "Star"}) == [epoch]


@pytest.mark.parametrize(
    ("change", "why"),
    [({"magpsf": None}, "upper limit"), ({"magnr": None}, "no reference source"),
     ({"distnr": 5.0}, "no reference source"), ({"magpsf": 17.0}, "total flux -"),
     ({"fid": 9}, "band None"), ({"jd": float("nan")}, "time nan")],
)  # fmt: skip
def test_an_epoch_without_total_flux_is_refused_as_an_alert_and_left_out_as_an_earlier_one(
    change, why
):
    good = detection(2460000.5, 18.5, 0.05)
    with pytest.raises(InputError, match=f"event a: .*{why}"):
        packet_epochs({"objectId": "a", "candidate": good | change})
    packet = {"objectId": "a", "candidate": good | {"jd": 2460001.5}}
    packet["prv_candidates"] = [good | {"jd": 2460000.5} | change, good]
    assert [epoch["time"] for epoch in packet_epochs(packet)] == [2460000.5, 2460001.5]


def rubin_source(time, mag, error, band="r", **more):
    flux = 3631e9 * 10 ** (-0.4 * mag)  # AB: 3631 Jy
    known = {"scienceFlux": flux, "scienceFluxErr": error * flux * np.log(10) / 2.5}
    empty = dict.fromkeys(("psfFlux", "psfFluxErr", "templateFlux", "templateFluxErr"))
    return empty | {
        "midpointMjdTai": time, "band": band, "visit": 1, "diaObjectId": 77, "psfFlux_flag": False,
    } | known | more  # fmt: skip


def test_rubin_packets_give_science_flux_and_each_visit_once():
    own = rubin_source(61000.2, 20.0, 0.03)
    parts = {"scienceFlux": None, "psfFlux": 3000.0, "psfFluxErr": 30.0}
    parts |= {"templateFlux": 1000.0, "templateFluxErr": 40.0}
    earlier = [rubin_source(60999.2, 20.2, 0.05), rubin_source(60998.2, 0, 0, "g", **parts)]
    forced = [rubin_source(60999.2, 20.3, 0.05), rubin_source(61000.2 - 2e-5, 20.1, 0.05)]
    forced += [rubin_source(60997.2, 20.4, 0.05), rubin_source(60999.2, 20.0, 0.1, "i")]
    forced += [rubin_source(60996.2, 0, 0, scienceFlux=-5.0, scienceFluxErr=3.0)]  # no magnitude
    packet = {"diaSource": own, "prvDiaSources": earlier, "prvDiaForcedSources": forced}
    epochs = packet_epochs(packet)
    assert {epoch["event"] for epoch in epochs} == {"77"}
    assert [e["new"] for e in epochs] == [False] * (len(epochs) - 1) + [True]
    stream, known = StreamingClassifier(random_network()), []
    answers = new_lines(stream, epochs, {})
    for line in answers:
        epoch = json.loads(line)
        known.append((epoch["dataset"], epoch["time"], round(epoch["mag"], 3)))
    total = round(31.4 - 2.5 * np.log10(4000), 3)
    assert known == [
        ("r", 60997.2, 20.4), ("g", 60998.2, total), ("r", 60999.2, 20.2), ("i", 60999.2, 20.0),
        ("r", 61000.2, 20.0),
    ]  # fmt: skip
    (g,) = (epoch for epoch in epochs if epoch["dataset"] == "g")
    assert g["mag_err"] == pytest.approx(1.0857 * 50 / 4000, rel=1e-4)
    with pytest.raises(InputError, match="an alert of no object"):
        packet_epochs({"diaSource": own | {"diaObjectId": None}, "diaObject": None})


def test_alerts_give_the_answers_of_lines(cluster, network, tmp_path):
    """Lines are made of the photometry itself, alerts of its differences from a reference."""
    address, write = cluster
    packets = [
        p for pair in zip(ztf_packets("a", 60), ztf_packets("b", 60, 1), strict=True) for p in pair
    ]
    write("same", [(None, container(packet), 0) for packet in packets])
    answers, problems, code = serve(network, address, "same", tmp_path / "state")
    rows = []
    for event, seed in (("a", 0), ("b", 1)):
        for k, values in enumerate(zip(*photometry(60, seed), strict=True)):
            epoch = dict(zip(("time", "mag", "mag_err"), map(float, values), strict=True))
            rows.append(json.dumps(epoch | {"event": event, "dataset": "gr"[k % 2]}))
    wanted = by_epoch(answer for answer, _ in answer_lines(StreamingClassifier(network), rows))
    assert len(answers) == len(wanted) == 120 and problems == [] and code == 0
    assert by_epoch(answers) == pytest.approx(wanted, abs=1e-5)
    assert np.std(list(wanted.values())) > 0.01
    again, problems, code = serve(network, address, "same", tmp_path / "state")
    assert len(again) == len(answers) and problems == [] and code == 0  # nothing came twice


def test_an_alert_that_was_lost_is_made_up_for_by_the_next_ones(cluster, network, tmp_path):
    """Its detection is among the earlier ones of a later alert."""
    address, write = cluster
    packets = ztf_packets("a", 40)
    write("lost", [(None, container(p), 0) for k, p in enumerate(packets) if k % 4 == 0 or k > 36])
    answers, problems, _ = serve(network, address, "lost", tmp_path / "state")
    assert by_epoch(answers) == pytest.approx(expected(network, packets), abs=1e-5) and not problems
    assert [a["time"] for a in answers] == sorted(a["time"] for a in answers)


def test_bad_packets_and_late_epochs_are_one_answer_each(cluster, network, tmp_path):
    address, write = cluster
    good = ztf_packets("a", 20)
    limit = good[5] | {"candidate": good[5]["candidate"] | {"magpsf": None}}
    bad = [b"", b"junk", container(good[3])[:-30], container({"x": 1}, record("x", {"x": "int"}))]
    bad += [container(limit), container(good[2])]  # the last comes late
    values = [*map(container, good[:10]), *bad, *map(container, good[10:])]
    write("bad", [(None, value, 0) for value in values])
    answers, problems, code = serve(network, address, "bad", tmp_path / "state")
    assert code == 2 and len(problems) == len(bad)
    errors = sorted(a["error"] for a in answers if "error" in a)  # by offset
    assert [f"lensml stream: {error}" for error in errors] == problems
    assert all(e.startswith(f"bad [0] {10 + k}: ") and "\n" not in e for k, e in enumerate(errors))
    assert "does not follow" in errors[-1] and "upper limit" in errors[-2]
    kept = [a for a in answers if "error" not in a]
    assert by_epoch(kept) == pytest.approx(expected(network, good), abs=1e-5)


def test_schemas_come_in_the_key_or_from_a_file(cluster, network, tmp_path):
    address, write = cluster
    packets = ztf_packets("a", 20)
    key = json.dumps(ZTF).encode()
    write("fink", [(key, bare(packet, ZTF), 0) for packet in packets])
    answers, problems, _ = serve(network, address, "fink", tmp_path / "fink")
    assert by_epoch(answers) == pytest.approx(expected(network, packets), abs=1e-5) and not problems
    alerts = [
        {"diaSourceId": k, "diaSource": rubin_source(61000.0 + k, 20 - 0.02 * k, 0.02)}
        | dict.fromkeys(("prvDiaSources", "prvDiaForcedSources", "diaObject"))
        for k in range(20)
    ]
    path = tmp_path / "lsst.alert.avsc"
    path.write_text(json.dumps(RUBIN))
    framed = [(None, b"\0\0\0\4\x4d" + bare(alert, RUBIN), 0) for alert in alerts]
    write("rubin", [*framed, (None, framed[0][1] + b"1", 0), (None, framed[0][1][5:], 0)])
    answers, problems, code = serve(network, address, "rubin", tmp_path / "rubin", schema=path)
    kept = [a for a in answers if "error" not in a]
    assert by_epoch(kept) == pytest.approx(expected(network, alerts), abs=1e-5)
    assert code == 2 and len(problems) == 2 and "another schema" in problems[0]


def test_two_consumers_of_a_group_give_the_union(cluster, network, tmp_path):
    address, write = cluster
    events = {f"e{k}": ztf_packets(f"e{k}", 20, k) for k in range(6)}
    rows = [p for together in zip(*events.values(), strict=True) for p in together]
    write("keyed", [(p["objectId"], container(p)) for p in rows])
    first, _, _ = serve(network, address, "keyed", tmp_path / "0", part=":0,1")
    both, problems, code = serve(network, address, "keyed", tmp_path / "1", part=":2,3")
    events = {answer["event"] for answer in first}
    assert 0 < len(events) < 6 and len(first) == 20 * len(events) and len(both) == 120
    assert by_epoch(both) == pytest.approx(expected(network, rows), abs=1e-5)
    assert problems == [] and code == 0


def test_a_part_of_unkeyed_alerts_is_refused(cluster, network, tmp_path):
    address, write = cluster
    write("unkeyed", [(None, container(ztf_packets("a", 1)[0]), 1)])
    with pytest.raises(InputError, match="its key is not its event a"):
        serve(network, address, "unkeyed", tmp_path / "state", part=":1,2")


def test_offsets_are_committed_after_the_snapshot(cluster, network, tmp_path, monkeypatch):
    address, write = cluster
    packets = ztf_packets("a", 30)
    write("offsets", [(None, container(packet), 0) for packet in packets])
    monkeypatch.setattr(Broker, "answer", lambda *_: (_ for _ in ()).throw(InputError("no")))
    with pytest.raises(InputError, match="no"):
        serve(network, address, "offsets", tmp_path / "state")
    monkeypatch.undo()
    kept = StreamingClassifier(network)
    kept.restore(tmp_path / "state")
    assert not kept.events and not kept.offsets  # what was not answered does not count
    save = SnapshotScheduler.save

    def save_nothing_new(keeper):
        if keeper.stream.lines:
            raise InputError("killed")
        save(keeper)

    monkeypatch.setattr(SnapshotScheduler, "save", save_nothing_new)
    with pytest.raises(InputError, match="killed"):
        serve(network, address, "offsets", tmp_path / "state")
    monkeypatch.undo()
    answers, _, _ = serve(network, address, "offsets", tmp_path / "state")
    assert len(answers) == 60  # those of the lost state came again
    assert by_epoch(answers) == pytest.approx(expected(network, packets), abs=1e-5)
    kept.restore(tmp_path / "state")
    assert kept.offsets == {"offsets 0": 30}
    consumer = kafka.Consumer({"bootstrap.servers": address, "group.id": "lensml"})
    (at,) = consumer.committed([kafka.TopicPartition("offsets", 0)], timeout=10)
    consumer.close()
    assert at.offset == 30


@pytest.fixture
def command():
    """Starts the command on a topic; what still runs after a test is killed."""
    started = []

    def start(address, topic, state, *flags):
        words = ["--kafka", address, "--topics", topic, "--answers", f"{topic}-answers"]
        words = [sys.executable, "-m", "lensml", "stream", *words, "--state", str(state), *flags]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_no_answer_is_lost_when_the_process_is_killed(cluster, command, tmp_path):
    """Twice, in the middle; answers that come again are the same."""
    address, write = cluster
    events = [ztf_packets(f"e{k}", 150, k) for k in range(16)]
    packets = [packet for row in zip(*events, strict=True) for packet in row]
    values = [(None, container(packet), 0) for packet in packets]
    state = tmp_path / "state"
    write("killed", values[:400])
    process = command(address, "killed", state)
    assert len(read(address, "killed-answers", 100, 60)) == 100
    process.kill()
    process.wait()
    write("killed", values[400:])
    process = command(address, "killed", state)
    assert len(read(address, "killed-answers", 401, 60)) == 401
    process.kill()
    process.wait()
    kept = StreamingClassifier()
    kept.restore(state)
    process = command(address, "killed", state, "--until_end")
    problems = process.communicate(timeout=60)[1]
    answers = read(address, "killed-answers")
    assert process.returncode == 0 and problems == ""
    assert kept.lines == sum(kept.offsets.values())  # a state and its offsets are one
    found, wanted = {}, expected(None, packets)
    for a in answers:
        found.setdefault((a["event"], a["dataset"], a["time"]), []).append(a["p_binary"])
    assert max(map(np.ptp, found.values())) < 1e-5
    assert {k: v[0] for k, v in found.items()} == pytest.approx(wanted, abs=1e-5)


def test_a_signal_ends_it_with_its_state(cluster, command, tmp_path):
    address, write = cluster
    write("signal", [(None, container(packet), 0) for packet in ztf_packets("a", 12)])
    process = command(address, "signal", tmp_path / "state")
    assert len(read(address, "signal-answers", 12, 60)) == 12
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    kept = StreamingClassifier()
    kept.restore(tmp_path / "state")
    assert process.returncode == 128 + signal.SIGTERM
    assert kept.offsets == {"signal 0": 12} and kept.lines == 12


@pytest.mark.parametrize(
    ("flags", "why"),
    [(["--topics", "a"], "need --kafka"), (["--kafka", "x:1", "--topics", "a"], "needs --topics"),
     ("--kafka {settings} --topics a --answers b --state {state}".split(), "no-such")],
)  # fmt: skip
def test_wrong_flags_and_settings_are_one_line(tmp_path, flags, why):
    (tmp_path / "settings").write_text("# mine\nbootstrap.servers = 127.0.0.1:9\nno-such = 1\n")
    flags = [x.format(settings=tmp_path / "settings", state=tmp_path / "s") for x in flags]
    words = [sys.executable, "-m", "lensml", "stream", *flags]
    run = subprocess.run(words, input="", capture_output=True, text=True)
    assert run.returncode == 2 and why in run.stderr and run.stderr.count("\n") == 1, run.stderr


def test_without_the_packages_one_line_names_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(InputError, match=r"pip install 'lensml\[kafka\]'"):
        Broker("127.0.0.1:9", ["a"], "b")
