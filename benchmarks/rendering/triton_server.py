"""The tables about the Triton server."""

from __future__ import annotations

from .page import Record, page


def triton(record: Record) -> str:
    """Return requests per second and latencies by clients, and what the server costs beyond serialisation."""
    clients = list(record["results"]["one process"])
    head = ["", *(f"{count} client{'s' if count != '1' else ''}" for count in clients)]
    rows = []
    for name, figures in record["results"].items():
        cells = (figures[count] for count in clients)
        rows.append(
            [name, *(f"{c['requests_per_s']:.1f}/s, {c['p50_ms']:.0f} ms, {c['p99_ms']:.0f} ms" for c in cells)]
        )
    for protocol, shares in record["beyond_serialisation"].items():
        rows.append([f"{protocol}: beyond serialisation", *(f"{shares[count]:+.1%}" for count in clients)])
    cores = record["machine"]["cores"]
    what = (
        f"`{record['model']}` in {record['precision']}, {record['views']} views of {record['size']}, one engine; "
        f"requests per second, median and 99th percentile of the latency; {record['rounds']} rounds in turn, on "
        f"{cores} processor{'s' if cores != 1 else ''} for engine, server and clients together."
    )
    return page(record, head, rows, what)


def triton_soak(record: Record) -> str:
    """Return what a server was asked during a soak, and what differed and grew."""
    rows = [[name, str(count)] for name, count in record["results"].items()]
    first, last = record["first_round"], record["last_round"]
    memory = " to ".join(f"{state['resident_bytes'] / 1e6:.0f}" for state in (first, last))
    counts = ", ".join(f"{first[name]} to {last[name]} {name}" for name in ("descriptors", "processes"))
    what = (
        f"`{record['model']}`, {record['callers']} clients for {record['seconds'] / 60:.0f} minutes. First difference "
        f"from the first answer: {record['first_difference'] or 'none'}. From the first tenth to the end, server and "
        f"models: {memory} MB resident, {counts}."
    )
    return page(record, ["requests", "answered"], rows, what)
