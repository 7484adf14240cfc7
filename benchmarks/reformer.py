"""Hashed attention over length, beside fused full attention and reformer-pytorch; and a deep model on a long text.

Times are the least of ``--repeats`` interleaved runs. Memory is how far one run, in a process of its own, raises the resident
set. The peer runs in its own environment, which needs torch and reformer-pytorch; so does this one there, to share the run.

    python benchmarks/reformer.py --peers PYTHON [--lengths 1024 65536] [--threads 2] [--out benchmarks/results/reformer.json]
    python benchmarks/reformer.py --deep [--length 65536] [--backward reversible]
        [--out benchmarks/results/reformer_deep.json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from raw import machine, save

WIDTH, HEADS, HASHES, CHUNK = 512, 8, 4, 64
MODES = ("forward", "forward and backward")


class Full(torch.nn.Module):
    """Fused full attention with the projections of the others."""

    def __init__(self):
        super().__init__()
        self.project, self.output = torch.nn.Linear(WIDTH, 3 * WIDTH, bias=False), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.project(x).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        return self.output(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def make(name):
    if name == "fused":
        return Full()
    if name == "dldw":
        from dldw.memory import keep_freed_memory
        from dldw.nn import LSHAttention

        keep_freed_memory()
        return LSHAttention(WIDTH, heads=HEADS, hashes=HASHES, chunk=CHUNK)
    from reformer_pytorch import LSHSelfAttention

    return LSHSelfAttention(WIDTH, heads=HEADS, n_hashes=HASHES, bucket_size=CHUNK, causal=True)


def run(attention, x, mode):
    if mode == "forward":
        with torch.no_grad():
            attention(x)
    else:
        attention(x).sum().backward()


def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(name, length, mode):
    """MiB that one run takes beyond a short one."""
    attention = make(name)
    run(attention, torch.randn(1, 128, WIDTH, requires_grad=True), mode)
    x = torch.randn(1, length, WIDTH, requires_grad=True)
    before = resident()
    run(attention, x, mode)
    return resident() - before


def serve():
    """Answers requests [name, length, mode] on standard input with seconds, one run each: so runs can be interleaved."""
    made = {}
    for line in sys.stdin:
        name, length, mode = json.loads(line)
        if name not in made:
            made[name] = make(name)
        attention = made[name]
        x = torch.randn(1, length, WIDTH, requires_grad=True)
        start = time.perf_counter()
        run(attention, x, mode)
        print(json.dumps(time.perf_counter() - start), flush=True)


class Runner:
    """A process that times the runs of one contestant."""

    def __init__(self, python, name, threads):
        self.name, self.command = name, [python, __file__, "--threads", str(threads)]
        self.process = subprocess.Popen(
            [*self.command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, length, mode):
        print(json.dumps([self.name, length, mode]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def memory(self, length, mode):
        request = json.dumps([self.name, length, mode])
        return json.loads(subprocess.run([*self.command, "--memory", request], check=True, capture_output=True).stdout)


def slope(lengths, seconds):
    """The exponent b of seconds = a · length^b, by least squares on logarithms."""
    x, y = ([math.log(value) for value in values] for values in (lengths, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def crossover(lengths, ours, fused):
    """Where ours becomes the faster, on straight lines between measured lengths in logarithms; None where it never does."""
    ratio = [math.log(a / b) for a, b in zip(ours, fused, strict=True)]
    for i in range(len(lengths) - 1, -1, -1):
        if ratio[i] > 0:
            if i == len(lengths) - 1:
                return None
            share = ratio[i] / (ratio[i] - ratio[i + 1])
            return lengths[i] * (lengths[i + 1] / lengths[i]) ** share
    return lengths[0]


def compare(arguments):
    low, high = arguments.lengths
    lengths = [low << i for i in range((high // low).bit_length())]
    runners = [Runner(sys.executable, name, arguments.threads) for name in ("dldw", "fused")]
    runners.append(Runner(arguments.peers, "reformer-pytorch", arguments.threads))
    results = {
        "machine": machine(arguments.threads, torch=torch.__version__),
        "lengths": lengths,
        "seconds": {},
        "MiB": {},
    }
    for mode in MODES:
        seconds = results["seconds"][mode] = {r.name: [] for r in runners}
        mib = results["MiB"][mode] = {r.name: [] for r in runners}
        for length in lengths:
            times = {r.name: [] for r in runners}
            for _ in range(arguments.repeats + 1):  # the first is to warm up
                for r in runners:
                    times[r.name].append(r.seconds(length, mode))
            for r in runners:
                seconds[r.name].append(min(times[r.name][1:]))
                mib[r.name].append(r.memory(length, mode))
            line = "  ".join(
                f"{r.name} {1000 * seconds[r.name][-1]:9.1f} ms {mib[r.name][-1]:7.0f} MiB" for r in runners
            )
            ratio = seconds["reformer-pytorch"][-1] / seconds["dldw"][-1]
            print(f"{mode}, {length:6d} tokens: {line}  {ratio:.2f} x faster than reformer-pytorch", flush=True)
        exponents = {r.name: slope(lengths, seconds[r.name]) for r in runners}
        log = slope(lengths, [length * math.log(length) for length in lengths])
        cross = crossover(lengths, seconds["dldw"], seconds["fused"])
        where = "not faster than fused" if cross is None else f"faster than fused from {cross:.0f} tokens on"
        results[mode] = {"exponents": exponents, "exponent of L log L": log, "crossover": cross}
        print(f"{mode}: time grows as L^b, b = {', '.join(f'{n} {b:.3f}' for n, b in exponents.items())}", end="")
        print(f"; that of L log L over these lengths is {log:.3f}; {where}")
        save(arguments.out, results)


def deep(arguments):
    """Training steps of 12 layers; the limit is on what this process may hold. Runs of other backwards in the file stay."""
    from dldw.memory import keep_freed_memory
    from dldw.nn import Reformer, ReformerConfig

    keep_freed_memory()
    side = 1 << (arguments.length.bit_length() // 2)
    grid = (-(-arguments.length // side), side)
    config = ReformerConfig(256, layers=("local", "lsh") * 6, positions=grid)
    model = Reformer(config, backward=arguments.backward)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    tokens = torch.randint(256, (1, arguments.length))
    out = arguments.out
    results = json.loads(out.read_text()) if out and out.exists() else {}
    results["machine"], rows = machine(arguments.threads, torch=torch.__version__), []
    results[arguments.backward] = rows
    start = time.perf_counter()
    for _ in range(arguments.repeats):
        loss = model.loss(tokens).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        row = {
            "layers": 12, "length": arguments.length, "backward": arguments.backward, "loss": float(loss.detach()),
            "weights": sum(p.numel() for p in model.parameters()), "peak MiB": round(resident()),
            "seconds": time.perf_counter() - start,
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        rows.append(row)
        save(out, results)
        start = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the python of an environment with reformer-pytorch")
    parser.add_argument(
        "--lengths", type=int, nargs=2, default=(1024, 65_536), help="shortest and longest; between, doubled"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--deep", action="store_true", help="train 12 layers on one long sequence and print the peak")
    parser.add_argument("--length", type=int, default=65_536)
    parser.add_argument("--backward", default="reversible", choices=("reversible", "checkpoint", "plain"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.serve:
        serve()
    elif arguments.memory:
        print(json.dumps(memory(*arguments.memory)))
    elif arguments.deep:
        deep(arguments)
    elif arguments.peers:
        compare(arguments)
    else:
        parser.error("--peers is needed: the python of an environment with reformer-pytorch; or --deep")


if __name__ == "__main__":
    main()
