"""Alert packets of ZTF, Rubin and Fink: Avro in, epochs of total magnitudes out."""

import io
import json
from collections.abc import Mapping
from functools import cache
from math import hypot, isfinite, log, log10
from typing import Any

from lensml.paths import InputError
from lensml.streaming.classifier import quoted

SAME_EPOCH = 1e-4  # epochs of one data set nearer than this are one exposure, listed twice [day]
FARTHEST = 1.4  # of the reference source of an event, in pixels of 1 arcsec (Foerster et al. 2021)
ZTF_BANDS = {1: "g", 2: "r", 3: "i"}
AB_NANOJANSKY = 31.4  # magnitude of 1 nJy
MAGNITUDE = 2.5 / log(10)


def packet_epochs(packet: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Epochs of an alert in order of time, as lines of a stream; `new` is true of its own.

    Packets are ZTF's, Rubin's, Fink's nested ones of both, or rows of Fink with names like `i:jd`.
    Times stay those of the packet: JD (UTC) of ZTF, MJD (TAI) of Rubin. Earlier epochs without a
    total flux, such as upper limits, are left out; an alert that has none itself is an InputError.
    """
    if "i:objectId" in packet:
        packet = {key[2:]: value for key, value in packet.items() if key[:2] == "i:"}
        packet["candidate"] = packet
    if "candidate" in packet:
        event, own, read = packet.get("objectId"), packet["candidate"], _ztf_epoch
        lists = ("prv_candidates",)
    elif "diaSource" in packet:
        own, read = packet["diaSource"], _rubin_epoch
        lists = ("prvDiaSources", "prvDiaForcedSources")
        event = own.get("diaObjectId") or (packet.get("diaObject") or {}).get("diaObjectId")
    else:
        raise InputError("no alert of ZTF, Rubin or Fink: no candidate, diaSource or i:objectId")
    if event in (None, ""):
        raise InputError("an alert of no object: its objectId or diaObjectId is empty")
    found = []
    for source in (own, *(x for name in lists for x in packet.get(name) or [])):
        try:
            epoch = {"event": str(event), **read(source), "new": source is own}
        except InputError as error:
            if source is own:
                raise InputError(f"event {quoted(event)}: {error}") from None
            continue
        same = found and epoch["dataset"] == found[0]["dataset"]  # as the own, which is first
        if not same or abs(epoch["time"] - found[0]["time"]) > SAME_EPOCH:
            found.append(epoch)
    return sorted(found, key=lambda epoch: epoch["time"])


def _ztf_epoch(source: Mapping[str, Any]) -> dict[str, Any]:
    """Reference plus or minus difference flux (Foerster et al. 2021, AJ 161, 242).

    Their errors are taken as independent, as Lasair does (Smith et al. 2019, RNAAS 3, 26): too
    large rather than too small, for that of the reference is the same at all epochs.
    """
    names = ("magpsf", "sigmapsf", "magnr", "sigmagnr", "distnr")
    mag, error, reference, reference_error, distance = map(source.get, names)
    if mag is None or error is None:
        raise InputError("an upper limit, without magpsf")
    if None in (reference, reference_error, distance) or distance > FARTHEST:
        raise InputError(f"no reference source within {FARTHEST} arcsec, so no total flux")
    sign = 1 if str(source.get("isdiffpos")).lower() in ("t", "1", "true") else -1
    constant, change = 10 ** (-0.4 * reference), 10 ** (-0.4 * mag)
    noise = hypot(constant * reference_error, change * error) / MAGNITUDE
    band = ZTF_BANDS.get(source.get("fid"))
    return _epoch(band, source.get("jd"), constant + sign * change, noise, 0.0)


def _rubin_epoch(source: Mapping[str, Any]) -> dict[str, Any]:
    """Flux on the science image, else difference flux plus template flux [nJy]."""
    flux, error = source.get("scienceFlux"), source.get("scienceFluxErr")
    if flux is None or error is None or source.get("forced_PsfFlux_flag"):
        names = ("psfFlux", "templateFlux", "psfFluxErr", "templateFluxErr")
        values = list(map(source.get, names))
        if None in values or source.get("psfFlux_flag"):
            raise InputError("no scienceFlux, nor psfFlux with templateFlux")
        flux, error = values[0] + values[1], hypot(*values[2:])
    return _epoch(source.get("band"), source.get("midpointMjdTai"), flux, error, AB_NANOJANSKY)


def _epoch(band: str | None, time: float | None, flux: float, error: float, zero: float) -> dict:
    if not (band and time is not None and isfinite(time) and isfinite(error) and flux > 0):
        raise InputError(f"band {band}, time {time}, total flux {flux:.3g} +- {error:.3g}; "
                         "a band, a time and a positive flux were expected")  # fmt: skip
    mag, error = zero - 2.5 * log10(flux), MAGNITUDE * error / flux
    return {"dataset": band, "time": time, "mag": mag, "mag_err": error}


def read_packets(value: bytes | None, key: bytes | None, schema: Any = None) -> list[dict]:
    """Packets of one message; InputError if it cannot be read.

    The schema comes with an Avro container (ZTF), as JSON in the key (Fink), or is `schema`, that
    of messages with the 5 bytes of a schema registry before them (Rubin).
    """
    import fastavro

    body = io.BytesIO(value or b"")
    try:
        if body.getvalue()[:4] == b"Obj\x01":
            return list(fastavro.reader(body))
        if (key or b"")[:1] == b"{":
            schema = _parsed(key)
        elif schema is None or body.read(5)[:1] != b"\0":
            raise ValueError("no container, no schema in the key, nor a header and --schema")
        packet = fastavro.schemaless_reader(body, schema, None)
        if body.read(1):
            raise ValueError("bytes are left over: it was written with another schema")
    except Exception as error:  # whatever a damaged packet makes fastavro raise
        why = " ".join(str(error).split())[:200]
        raise InputError(f"no readable Avro packet ({why})") from None
    return [packet]


@cache
def _parsed(schema: bytes) -> Any:
    from fastavro import parse_schema

    return parse_schema(json.loads(schema))
