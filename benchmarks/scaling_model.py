"""How long an optimizer step takes on 1 to 4,096 devices, on paper, and which batch a cluster wants.

    step      = compute + max(exchange - what of it is hidden, 0) + optimizer,   or the data's time, if that is longer
    compute   = fixed + samples of a device * operations of a sample / (operations a second)
    exchange  = all-reduce of the gradients: a ring, or rings within and between nodes
    optimizer = bytes that it moves / (bytes a second of the memory)
    waiting   = seconds for each doubling of the devices: latency of a tree, and the slowest of many

    python benchmarks/scaling_model.py published
    python benchmarks/scaling_model.py cluster --devices 64 --device-tflops 400 --samples-at-once 64

The first fits three constants (operations a second, fixed seconds, seconds for each doubling) to the published times of
BERT-Large on 16 to 1,024 chips (arXiv 1904.00962, table 1), all three at least 0, by least squares of the relative
errors, and prints the errors: of the fit, and of each row predicted from the others alone. The second prints for each
batch the step, 512 million samples, and the time until as much is learned as the least batch would learn: for that the
samples grow by 1 + B / B_crit with B_crit = 12,700, fitted to MLPerf's runs of BERT.

The formulas are textbook's (Thakur et al., 2005, for the rings); nothing here is measured. `scaling_measured.py`
compares the same formulas with two processes on this machine.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tyro
from scipy.optimize import nnls

from largebatch.plans import bert_mixed_plan, bert_plan

# ---- parts of a step ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Link:
    """What one device can exchange with its neighbour."""

    bytes_per_second: float
    latency_seconds: float


def ring_seconds(size_bytes: float, devices: int, link: Link) -> float:
    """Return the time of an all-reduce along a ring: ``2 (n-1) (size / n / bandwidth + latency)``."""
    return 2 * (devices - 1) * (size_bytes / devices / link.bytes_per_second + link.latency_seconds)


def hierarchical_seconds(size_bytes: float, devices: int, per_node: int, inner: Link, outer: Link) -> float:
    """Return the time of an all-reduce by rings within nodes, and by rings between them for each share of a node.

    A reduce-scatter within (half a ring), the all-reduce of ``size / per_node`` between, an all-gather within.

    Raises:
        ValueError: the devices are not whole nodes.
    """
    if devices % per_node:
        raise ValueError(f"devices is {devices}, allowed is a multiple of per_node, {per_node}")
    return ring_seconds(size_bytes, per_node, inner) + ring_seconds(size_bytes / per_node, devices // per_node, outer)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained."""

    parameters: float
    gradient_bytes: int = 4
    """Of a parameter, as it is exchanged."""
    moved_words: int = 10
    """Words of four bytes that a step of the optimizer moves for a parameter; LAMB's ten."""

    def exchanged_bytes(self) -> float:
        """Return the bytes of all gradients."""
        return self.parameters * self.gradient_bytes


def step_seconds(
    *, compute: float, exchange: float, hidden: float = 0, optimizer: float = 0, waiting: float = 0, data: float = 0
) -> float:
    """Return the time of a step, of its parts in seconds.

    Args:
        compute: forward and backward passes.
        exchange: of the gradients.
        hidden: how much of the exchange runs beside the backward pass at most.
        optimizer: the update.
        waiting: for the slowest.
        data: reading and decoding, which runs beside all else.
    """
    return max(compute + max(exchange - hidden, 0.0) + optimizer + waiting, data)


def nearest_factors(terms: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Return the factors of terms, all at least 0, whose sums have the least squared relative errors."""
    table = np.array(terms) / np.array(seconds)[:, None]
    scale = table.max(axis=0)
    return (nnls(table / scale, np.ones(len(seconds)))[0] / scale).tolist()


# ---- BERT-Large as published -------------------------------------------------------------------------------------

_LAYERS, _HIDDEN, _INTERMEDIATE, _VOCABULARY = 24, 1024, 4096, 30_522
BERT_LARGE_PARAMETERS = 336e6
B_CRIT = 12_700
"""Samples of a batch at which twice the samples are needed; fitted to MLPerf's runs of BERT with LAMB."""


def bert_large_flops(length: int) -> float:
    """Return the operations of a forward and backward pass over one sequence, 15 % of it predicted."""
    each = 8 * _HIDDEN**2 + 4 * _HIDDEN * _INTERMEDIATE
    encoder = _LAYERS * (length * each + 4 * _HIDDEN * length**2)
    heads = 0.15 * length * (2 * _HIDDEN**2 + 2 * _HIDDEN * _VOCABULARY) + 2 * _HIDDEN**2
    return 3 * (encoder + heads)


@dataclass(frozen=True)
class StageLoad:
    """One stage on one device."""

    steps: int
    samples: float
    """Of a device and step."""
    length: int


@dataclass(frozen=True)
class PublishedTime:
    """A row of the paper's table 1."""

    batch: str
    chips: int
    """16 and 1,024 are said in the paper; between, 32 samples of a chip are kept, as at both ends."""
    seconds: float
    stages: tuple[StageLoad, ...]


def _row(batch: int, seconds: float) -> PublishedTime:
    chips = batch // 32
    stages = [
        StageLoad(stage.steps.value, batch / chips, stage.sequence_length.value)
        for stage in bert_plan(batch).stages
        if stage.sequence_length
    ]
    return PublishedTime(f"{batch:,}", chips, seconds, tuple(stages))


def published_times() -> list[PublishedTime]:
    """Return the paper's times of BERT-Large with LAMB."""
    hour, minute = 3600.0, 60.0
    times = (82.8 * hour, 43.2 * hour, 21.4 * hour, 693.6 * minute, 390.5 * minute, 200.0 * minute, 101.2 * minute)
    rows = [_row(512 * 2**n, seconds) for n, seconds in enumerate(times)]
    mixed = [
        StageLoad(stage.steps.value, stage.global_batch_samples.value / 1024, stage.sequence_length.value)
        for stage in bert_mixed_plan().stages
        if stage.sequence_length
    ]
    return [*rows, PublishedTime("64K/32K", 1024, 76.19 * minute, tuple(mixed))]


@dataclass(frozen=True)
class Fit:
    """The three constants."""

    flops_per_second: float
    fixed_seconds: float
    """Of a step, whatever its samples: the exchange's bytes, the update, starting of kernels and hosts."""
    doubling_seconds: float
    """Of a step, for each doubling of the devices from 16."""

    def seconds(self, row: PublishedTime) -> float:
        """Return the time of a whole run."""
        rate, fixed, doubling = _coefficients(row)
        return rate / self.flops_per_second + fixed * self.fixed_seconds + doubling * self.doubling_seconds


def _coefficients(row: PublishedTime) -> tuple[float, float, float]:
    """Return what 1 / rate, fixed and doubling seconds are multiplied by."""
    steps = sum(stage.steps for stage in row.stages)
    flops = sum(stage.steps * stage.samples * bert_large_flops(stage.length) for stage in row.stages)
    return flops, steps, steps * math.log2(row.chips / 16)


def fitted(rows: Sequence[PublishedTime]) -> Fit:
    """Return the constants of the least sum of squared relative errors."""
    rate, fixed, doubling = nearest_factors([_coefficients(row) for row in rows], [row.seconds for row in rows])
    return Fit(1 / rate, fixed, doubling)


def efficiency(seconds: float, chips: int, base: PublishedTime) -> float:
    """Return the paper's efficiency: chip-seconds of the base over those of a run of the same samples."""
    return base.seconds * base.chips / (seconds * chips)


def print_published() -> None:
    """Print the fit, its errors, and those of each row from the others alone."""
    rows = published_times()
    fit = fitted(rows)
    print(
        f"fit: {fit.flops_per_second / 1e12:.1f} TFLOP/s a chip, {1e3 * fit.fixed_seconds:.0f} ms fixed, "
        f"{1e3 * fit.doubling_seconds:.1f} ms for each doubling\n"
    )
    print("| batch | chips | published | fitted | error | from the other rows | error | efficiency | fitted |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        others = fitted([other for other in rows if other is not row]).seconds(row)
        own = fit.seconds(row)
        cells = [row.batch, f"{row.chips:,}", f"{row.seconds / 60:,.1f} min", f"{own / 60:,.1f}"]
        cells += [f"{own / row.seconds - 1:+.1%}", f"{others / 60:,.1f}", f"{others / row.seconds - 1:+.1%}"]
        cells += [f"{efficiency(row.seconds, row.chips, rows[0]):.1%}"]
        cells += [f"{efficiency(own, row.chips, rows[0]) * fit.seconds(rows[0]) / rows[0].seconds:.1%}"]
        print(f"| {' | '.join(cells)} |")


# ---- any cluster -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Devices and what lies between them."""

    devices: int = 64
    """How many."""
    per_node: int = 8
    """Devices of a node; one node may have fewer."""
    device_tflops: float = 400.0
    """10^12 operations a second that a device really makes in this network: its peak times the utilisation in a log."""
    fixed_ms: float = 5.0
    """Milliseconds of a pass that do not depend on its samples."""
    samples_at_once: int = 64
    """Sequences of 128 tokens that fit into a device's memory, in one pass."""
    inner_gb_per_second: float = 200.0
    """10^9 bytes a second of a device to its neighbour in the node."""
    outer_gb_per_second: float = 25.0
    """The same between nodes, for a device's share."""
    inner_latency_us: float = 5.0
    """Microseconds of a message within a node."""
    outer_latency_us: float = 20.0
    """The same between nodes."""
    memory_gb_per_second: float = 2000.0
    """10^9 bytes a second of a device's memory."""
    gradient_bytes: int = 4
    """Of a parameter in the exchange: 2 with compression."""
    overlapped: float = 0.8
    """Share of the backward pass beside which gradients are exchanged."""
    doubling_ms: float = 0.5
    """Milliseconds that a step waits longer for each doubling of the nodes."""
    input_samples_per_second: float = math.inf
    """Sequences that a device's host makes ready."""


@dataclass(frozen=True)
class BatchTime:
    """One batch on a cluster."""

    batch: int
    compute: float
    exchange: float
    step: float
    epoch_hours: float
    """512 million samples."""
    target_hours: float
    """As much learned as by 512 million samples of the least batch."""


def exchange_seconds(cluster: Cluster, size_bytes: float) -> float:
    """Return the time of an all-reduce on a cluster."""
    inner = Link(bytes_per_second=1e9 * cluster.inner_gb_per_second, latency_seconds=1e-6 * cluster.inner_latency_us)
    outer = Link(bytes_per_second=1e9 * cluster.outer_gb_per_second, latency_seconds=1e-6 * cluster.outer_latency_us)
    per_node = min(cluster.per_node, cluster.devices)
    return hierarchical_seconds(size_bytes, cluster.devices, per_node, inner, outer)


def batch_time(cluster: Cluster, batch: int, length: int = 128) -> BatchTime:
    """Return what a batch of BERT-Large takes on a cluster.

    Raises:
        ValueError: the batch is smaller than the devices, or these are not whole nodes.
    """
    if batch < cluster.devices:
        raise ValueError(f"batch is {batch:,}, allowed is {cluster.devices:,} or more: a sample for each device")
    network = Network(parameters=BERT_LARGE_PARAMETERS, gradient_bytes=cluster.gradient_bytes)
    samples = -(-batch // cluster.devices)
    passes = -(-samples // cluster.samples_at_once)
    arithmetic = samples * bert_large_flops(length) / (1e12 * cluster.device_tflops)
    compute = passes * 1e-3 * cluster.fixed_ms + arithmetic
    exchange = exchange_seconds(cluster, network.exchanged_bytes()) if cluster.devices > 1 else 0.0
    step = step_seconds(
        compute=compute,
        exchange=exchange,
        hidden=cluster.overlapped * (2 / 3) * arithmetic / passes,  # beside the last pass alone
        optimizer=4 * network.moved_words * network.parameters / (1e9 * cluster.memory_gb_per_second),
        waiting=1e-3
        * cluster.doubling_ms
        * math.log2(max(cluster.devices / min(cluster.per_node, cluster.devices), 1)),
        data=samples / cluster.input_samples_per_second,
    )
    hours = step * 512e6 / batch / 3600
    return BatchTime(batch, compute, exchange, step, hours, hours * (1 + batch / B_CRIT))


def print_cluster(cluster: Cluster) -> None:
    """Print each batch and the one that is done first."""
    batches = [2**n for n in range(8, 17) if 2**n >= cluster.devices]
    if not batches:
        raise ValueError(f"devices is {cluster.devices:,}, allowed is 65,536 or less")
    times = [batch_time(cluster, batch) for batch in batches]
    best = min(times, key=lambda one: one.target_hours)
    print("| batch | of a device | compute, ms | exchange, ms | step, ms | 512M samples, h | to the same loss, h |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one in times:
        cells = [f"{one.batch:,}", f"{-(-one.batch // cluster.devices):,}"]
        cells += [f"{1e3 * a:,.1f}" for a in (one.compute, one.exchange, one.step)]
        cells += [
            f"{one.epoch_hours:,.2f}",
            f"**{one.target_hours:,.2f}**" if one is best else f"{one.target_hours:,.2f}",
        ]
        print(f"| {' | '.join(cells)} |")


def main(words: Sequence[str]) -> None:
    """Print what the first word asks for."""
    try:
        if list(words) == ["published"]:
            print_published()
        elif words and words[0] == "cluster":
            print_cluster(tyro.cli(Cluster, args=list(words[1:])))
        else:
            given = " ".join(words) or "nothing"
            raise ValueError(f"{given} is asked for, allowed is published, or cluster with options")
    except ValueError as error:
        print(f"scaling_model: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
