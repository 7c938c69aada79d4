"""256 small networks trained together or one by one: python bench/population.py [--threads N]

A step is forward, backward and optimizer step of every member. "One by one" means 256 models, each
with its own optimizer. Both take turns. Prints the medians of 5 repetitions, after a warm-up in
which the population also chooses between vmap and loop.
"""

import argparse
from statistics import median
from time import perf_counter

import torch
from torch import nn

from steepest.full_batch import Population
from steepest.tasks.images import digits

LOSS = nn.functional.cross_entropy


def network(k: int) -> nn.Module:
    torch.manual_seed(k)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--members", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images, targets = digits(train=1797, validation=0)["train"]
    data = images.flatten(1)

    population = Population(network, options.members)
    optimizer = torch.optim.SGD(population.parameters(), lr=0.1)
    models = [network(k) for k in range(options.members)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]

    def together(x: torch.Tensor, y: torch.Tensor) -> None:
        population.backward(LOSS, x, y)
        optimizer.step()

    def alone(x: torch.Tensor, y: torch.Tensor) -> None:
        for model, model_optimizer in zip(models, optimizers, strict=True):
            model_optimizer.zero_grad()
            LOSS(model(x), y).backward()
            model_optimizer.step()

    for batch in (32, 128, len(data)):
        seconds: dict[str, list[float]] = {"together": [], "alone": []}
        for _ in range(options.repetitions + 1):
            for run in (together, alone):
                start = perf_counter()
                run(data[:batch], targets[:batch])
                seconds[run.__name__].append(perf_counter() - start)
        ms = {name: 1e3 * median(s[1:]) for name, s in seconds.items()}
        way = [*population.state_dict()["ways"].values()][-1]
        print(
            f"batch {batch:4}: together {ms['together']:.1f} ms ({way}), one by one "
            f"{ms['alone']:.1f} ms, {ms['alone'] / ms['together']:.2f} times faster",
            flush=True,
        )


if __name__ == "__main__":
    main()
