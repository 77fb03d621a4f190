"""Alerts of ZTF, Rubin and Fink from Kafka into a stream, and answers to a topic.

Answers are at the broker before a snapshot is taken, and the snapshot holds the offsets that it
counts. After a kill the stream goes on from there: an answer can come twice, none is lost.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from lensml.paths import InputError, printable
from lensml.streaming import server
from lensml.streaming.classifier import StreamingClassifier, quoted
from lensml.streaming.ledger import Ledger
from lensml.streaming.packets import SAME_EPOCH, packet_epochs, read_packets

NEEDS = "alerts from Kafka need confluent-kafka and fastavro: pip install 'lensml[kafka]'"
SECONDS = 30  # to wait for a server, and until answers are there [s]


class Broker:
    """Consumer of `topics`, each `name` or `name:0,2` of partitions; producer of `answers`.

    `servers` is host:port,.. or a file of `name=value` lines for librdkafka, with credentials;
    `schema` a file, in the folder of those it names.
    """

    def __init__(
        self, servers: str, topics: Iterable[str], answers: str, schema: Path | None = None
    ) -> None:
        try:
            import confluent_kafka as kafka
            from fastavro.schema import load_schema
        except ImportError:
            raise InputError(NEEDS) from None
        self.kafka, self.answers = kafka, answers
        self.places, self.split = [], False  # topics and partitions; whether there are others
        try:
            given = {"bootstrap.servers": servers}
            if Path(servers).is_file():
                lines = [
                    x.split("=", 1) for x in Path(servers).read_text().splitlines() if "=" in x
                ]
                given = {a.strip(): b.strip() for a, b in lines if not a.startswith("#")}
            own = {"group.id": given.pop("group.id", "lensml"), "auto.offset.reset": "earliest"}
            own |= {"enable.auto.commit": False, "enable.partition.eof": True}
            self.schema = load_schema(str(schema)) if schema else None
            self.consumer = kafka.Consumer(given | own)
            self.producer = kafka.Producer(given | {"enable.idempotence": True})
            for topic, _, some in (x.partition(":") for x in topics):
                there = set(self.consumer.list_topics(topic, SECONDS).topics[topic].partitions)
                wanted = set(map(int, some.split(","))) if some else there
                if not wanted or not wanted <= there:
                    raise InputError(f"topic {topic} has partitions {sorted(there)}, not {some}")
                self.places += [(topic, k) for k in sorted(wanted)]
                self.split |= wanted != there
        except Exception as error:  # of Kafka or of a schema, which have many
            raise InputError(f"--kafka {servers}: {' '.join(str(error).split())}") from None

    def positions(self, offsets: Mapping[str, int]) -> list:
        """Where to read on, or what to commit; `offsets` by topic and partition."""
        at = [offsets.get(f"{x} {k}", self.kafka.OFFSET_BEGINNING) for x, k in self.places]
        return [self.kafka.TopicPartition(*x, y) for x, y in zip(self.places, at, strict=True)]

    def answer(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write answers, keyed by event, and wait until the broker has them."""

        errors = []
        called = {"on_delivery": lambda error, _: errors.append(error)}
        for answer in answers:
            self.producer.produce(self.answers, json.dumps(answer), answer["event"], **called)
        if self.producer.flush(SECONDS) or any(errors):
            why = next(filter(None, errors), f"not within {SECONDS} s")
            raise InputError(f"--answers {self.answers}: not delivered ({why}); start it again")


def serve_alerts(
    stream: StreamingClassifier,
    broker: Broker,
    problems: TextIO,
    state: Path,
    ledger: Ledger | None = None,
    prevalence: float = 0.5,
    until_end: bool = False,
) -> int:
    """Answer alerts as `serve` answers lines, until a signal or the end of the topics.

    A bad packet or epoch is one answer with `error`, one of `problems`, and exit code 2 at the end.
    """
    keeper, code, ended, done = server.SnapshotScheduler(stream, state), 0, set(), False
    with server.wake_on_signals() as (_, signals):
        keeper.save()  # a path that cannot be written is better known now than after a night
        broker.consumer.assign(broker.positions(stream.offsets))
        while not done:
            first = broker.consumer.poll(server.IDLE_SECONDS)
            found, good = (
                [first, *broker.consumer.consume(server.BATCH - 1, 0)] if first else [],
                [],
            )
            for message in found:
                place, error = (message.topic(), message.partition()), message.error()
                if not error:
                    good.append(message)
                    ended.discard(place)
                elif error.code() == broker.kafka.KafkaError._PARTITION_EOF:
                    ended.add(place)
                else:
                    print(f"lensml stream: {printable(error)}", file=problems)
            for replies in _replies(stream, broker, good, ledger):
                server.shift_answers(replies, prevalence)
                broker.answer(answer for answer, _ in replies)
                for problem in (problem for _, problem in replies if problem):
                    print(f"lensml stream: {printable(problem)}", file=problems)
                    code = 2
            stream.offsets |= {f"{x.topic()} {x.partition()}": x.offset() + 1 for x in good}
            done = bool(signals or (until_end and len(ended) == len(broker.places)))
            if done or keeper.due(quiet=not good):
                keeper.save()
                if known := [x for x in broker.positions(stream.offsets) if x.offset >= 0]:
                    broker.consumer.commit(offsets=known)  # for who watches: the state decides
        broker.consumer.close()
    if ledger:
        print(f"lensml stream: {ledger.text(stream.followed)}", file=problems)
    return 128 + signals[0] if signals else code


def _replies(stream: StreamingClassifier, broker: Broker, messages: list, ledger) -> Iterator[list]:
    """Answers and problems of messages, about BATCH or less together."""
    lines, places, replies, known = [], [], [], {}
    for count, message in enumerate(messages, 1):
        place, epochs = f"{message.topic()} [{message.partition()}] {message.offset()}", []
        try:
            packets = read_packets(message.value(), message.key(), broker.schema)
            epochs = [epoch for packet in packets for epoch in packet_epochs(packet)]
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            replies.append(({"event": None, "error": f"{place}: {error}"}, f"{place}: {error}"))
        if broker.split and any(message.key() != epoch["event"].encode() for epoch in epochs):
            raise InputError(f"{place}: its key is not its event {quoted(epochs[0]['event'])}, so "
                             "alerts of it may lie in other partitions; read all")  # fmt: skip
        fresh = new_lines(stream, epochs, known)
        lines += fresh
        places += [place] * len(fresh)
        if len(lines) >= server.BATCH or count == len(messages):
            stream.lines += len(lines)
            found = server.answer_lines(stream, lines, ledger=ledger)
            for place, (answer, problem) in zip(places, found, strict=True):
                if problem:
                    answer["error"] = problem = f"{place}: {problem.partition(': ')[2]}"
                replies.append((answer, problem))
            yield replies
            lines, places, replies = [], [], []


def new_lines(stream: StreamingClassifier, epochs: list[dict], known: dict) -> list[str]:
    """Lines of epochs: of alerts, and of earlier ones not yet taken nor too late.

    `known` keeps last times by event and data set, of lines that `stream` has not taken yet.
    """
    lines = []
    for epoch in epochs:
        names = epoch["event"], epoch["dataset"]
        last = known.get(names, stream.last_time(*names))
        if epoch.pop("new") or last is None or epoch["time"] > last + SAME_EPOCH:
            known[names] = max(epoch["time"], last or epoch["time"])
            lines.append(json.dumps(epoch))
    return lines
