"""For an observer: the same weights, one light curve or one epoch at a time."""

from lensml._exports import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    cache="",
    store="EventStore",
    classifier="StreamingClassifier",
    thresholds="LEVELS AlertThreshold find_threshold",
    ledger="OUTCOMES Ledger exact_interval",
    server="answer_lines serve",
    packets="packet_epochs",
    brokers="Broker serve_alerts",
    classification="Classification classify_event classify_file",
)
