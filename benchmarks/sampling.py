"""What deciding *where* first saves: the suite's ancestral sampler beside a plain one, in one process.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py [--repeats 3]

The plain sampler does what is usual: every step evaluates every row, multiplies by the vocabulary at every
position, forms the law over tokens and mask together and takes the argmax of a Gumbel race over it, in float32
(cooled by its own rounding) or float64.  Both draw from the same masked process with the same Transformer.  Ratios
are of medians.
"""

import argparse
import statistics
import time

import torch

from dlm import sampling
from dlm.backbone import Transformer
from dlm.process import MaskedDiffusion

CASES = (  # vocabulary, width, layers, length, rows, steps
    (50_257, 256, 4, 128, 4, 16),
    (256, 128, 4, 128, 16, 128),
    (256, 128, 4, 128, 4, 512),
)


class Counted:
    """A network that counts the rows it evaluates and the positions it gives logits for."""

    def __init__(self, network: Transformer):
        self.network, self.calls, self.rows, self.positions = network, 0, 0, 0

    def __call__(self, x, t, where=None):
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        self.positions += x.numel() if where is None else int(where.sum())
        return self.network(x, t, where)


@torch.no_grad()
def plain(process, denoise, given, free, generator, steps, dtype):
    """All rows, all positions, one race over tokens and mask a step."""
    x = torch.full_like(given, process.mask_id)
    for i in range(steps, 0, -1):
        t = torch.full((len(x),), i / steps)
        mu = denoise(x, t).to(dtype).softmax(-1)
        stay = torch.full((*x.shape, 1), (i - 1) / i, dtype=dtype)
        joint = torch.cat([mu / i, stay], -1)
        race = -torch.rand(joint.shape, generator=generator, dtype=dtype).log()
        x = torch.where(x == process.mask_id, (joint / race).argmax(-1), x)
    return x


def measure(case, repeats):
    vocab, dim, depth, length, rows, steps = case
    torch.manual_seed(0)
    network = Transformer(vocab, length, dim, depth, heads=4).eval()
    process = MaskedDiffusion(vocab)
    given = torch.zeros(rows, length, dtype=torch.long)
    free = torch.ones_like(given, dtype=torch.bool)
    runs = {
        "where first": lambda net, rng: sampling.ancestral(process, net, given, free, rng, steps=steps),
        "plain, float32": lambda net, rng: plain(process, net, given, free, rng, steps, torch.float32),
        "plain, float64": lambda net, rng: plain(process, net, given, free, rng, steps, torch.float64),
    }
    seconds, asked = {name: [] for name in runs}, {}
    for repeat in range(repeats):
        for name, run in runs.items():
            asked[name] = Counted(network)
            begin = time.perf_counter()
            run(asked[name], torch.Generator().manual_seed(repeat))
            seconds[name].append(time.perf_counter() - begin)
    print(f"\nV={vocab:,}, d={dim}, {depth} layers, L={length}, {rows} rows, T={steps}")
    ours = statistics.median(seconds["where first"])
    for name, times in seconds.items():
        n = asked[name]
        print(
            f"  {name:15} {statistics.median(times):8.2f} s   x{statistics.median(times) / ours:6.1f}   "
            f"{n.calls:5} calls, {n.rows:6,} rows, {n.positions:9,} positions"
        )


def main():
    parser = argparse.ArgumentParser(description="Where-first sampling beside a plain sampler.")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    for case in CASES:
        measure(case, repeats)


if __name__ == "__main__":
    main()
