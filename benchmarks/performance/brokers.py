"""How many alerts from Kafka a second the stream takes, beside the same epochs as lines.

    python -m benchmarks.performance.brokers [--quick]

Needs the extra `kafka`. A mock cluster of librdkafka runs in a process of its own; of the stream
the time of the process is counted, its Kafka threads among it, so that a busy machine does not
slow it. Alerts are ZTF's: alone, and with three stamps of 20 kB and 20 earlier detections that are
known already, as most of a season's are.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import save_record
from lensml.network import Network, load_network
from lensml.streaming import Broker, StreamingClassifier, packet_epochs, serve, serve_alerts

CLUSTER = """
import sys
from confluent_kafka import Producer
owner = Producer({"test.mock.num.brokers": 1, "log_level": 2})
broker, = owner.list_topics(timeout=10).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
sys.stdin.read()
"""
NUMBERS = ("jd", "magpsf", "sigmapsf", "magnr", "sigmagnr", "distnr")


def schema() -> dict:
    """The part of ZTF's schema that is read here, and stamps."""

    def record(name: str, **types) -> dict:
        fields = [{"name": key, "type": value} for key, value in types.items()]
        return {"type": "record", "name": name, "fields": fields}

    numbers = dict.fromkeys(NUMBERS, ["null", "double"])
    candidate = record("candidate", fid="int", isdiffpos=["null", "string"], **numbers)
    earlier = {"type": "array", "items": "candidate"}
    names = dict.fromkeys(("cutoutScience", "cutoutTemplate", "cutoutDifference"), "bytes")
    return record("alert", objectId="string", candidate=candidate, prv_candidates=earlier, **names)


def alerts(num_events: int, num_epochs: int, earlier: int, stamp: int, generator) -> list[dict]:
    """Alerts of all events in turn, each with its last detection `earlier` times."""
    packets, seen = [], {}
    for k in range(num_epochs):
        mags = generator.normal(19.5, 0.1, num_events)
        for i, mag in enumerate(mags.tolist()):
            values = (2_460_000.5 + k + 1e-3 * i, mag, 0.1, 18.0, 0.01, 0.3)
            own = dict(zip(NUMBERS, values, strict=True)) | {"fid": 2, "isdiffpos": "t"}
            before = seen.setdefault(i, [])
            stamps = dict.fromkeys(("cutoutScience", "cutoutTemplate", "cutoutDifference"))
            packets.append(
                {
                    "objectId": f"e{i}",
                    "candidate": own,
                    "prv_candidates": before[-1:] * earlier,
                }
                | {name: bytes(stamp) for name in stamps}
            )
            before.append(own)
    return packets


def line_seconds(network: Network, packets: list[dict], folder: Path) -> float:
    """Core-seconds of `serve` over the alerts' own epochs as lines."""
    path = folder / "lines"
    found = (epoch for packet in packets for epoch in packet_epochs(packet) if epoch.pop("new"))
    path.write_text("".join(f"{json.dumps(epoch)}\n" for epoch in found))
    stream, answers = StreamingClassifier(network), io.StringIO()
    with path.open() as source:
        started = time.process_time()
        code = serve(stream, source, answers, sys.stderr, folder / "lines.state")
    seconds = time.process_time() - started
    assert code == 0 and answers.getvalue().count("\n") == len(packets)
    return seconds


def alert_seconds(network: Network, packets: list[dict], address: str, folder: Path) -> float:
    """Core-seconds of `serve_alerts` over the same as alerts, answers to a topic."""
    import fastavro
    from confluent_kafka import Producer

    topic, written = f"alerts-{os.urandom(4).hex()}", fastavro.parse_schema(schema())
    writer = Producer({"bootstrap.servers": address})
    for packet in packets:  # of a partition the cluster keeps 5 MB
        body, partition = io.BytesIO(), int(packet["objectId"][1:]) % 4
        fastavro.writer(body, written, [packet])
        writer.produce(topic, body.getvalue(), packet["objectId"], partition=partition)
        writer.poll(0)
    assert writer.flush(60) == 0
    stream = StreamingClassifier(network)
    started = time.process_time()
    broker = Broker(address, [topic], f"{topic}-answers")
    code = serve_alerts(stream, broker, sys.stderr, folder / f"{topic}.state", until_end=True)
    seconds = time.process_time() - started
    assert code == 0 and stream.lines == len(packets)
    return seconds


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, generator = time.time(), np.random.default_rng(12)
    network, numbers = load_network()[0], {}
    epochs = 8 if args.quick else 40
    command = [sys.executable, "-c", CLUSTER]
    cluster = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    address = cluster.stdout.readline().strip()
    with tempfile.TemporaryDirectory() as scratch:
        shapes = {"alone": (250, epochs, 0, 0), "with_history": (80, 3, 20, 20_000)}
        for name, shape in shapes.items():
            packets = alerts(*shape, generator)
            times = {"lines": [], "alerts": []}
            for _ in range(3):  # in turn, so that both see the same machine
                times["lines"].append(line_seconds(network, packets, Path(scratch)))
                times["alerts"].append(alert_seconds(network, packets, address, Path(scratch)))
            rates = {key: len(packets) / np.median(value) for key, value in times.items()}
            numbers |= {f"{key}_{name}_per_core_s": rate for key, rate in rates.items()}
            numbers[f"ratio_{name}"] = rates["alerts"] / rates["lines"]
    cluster.stdin.close()
    cluster.wait()
    save_record("brokers", numbers, seed=12, started=started, quick=args.quick)


if __name__ == "__main__":
    main()
