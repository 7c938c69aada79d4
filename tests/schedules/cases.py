"""Small models, data and steps for the tests of schedules."""

import io

import torch
from torch import nn

import steepest

STEPS = 45


def params():
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64)) for n in (3, 2)]


def sgd(lr=0.1, momentum=0.9):
    return torch.optim.SGD(params(), lr=lr, momentum=momentum)


def walk(optimizer, scheduler, steps=STEPS, start=0):
    """The lr of all groups at each step, on gradients that depend on the step alone."""
    seen = []
    for k in range(start, start + steps):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.sin(p.detach() * 3 + k)
        optimizer.step()
        scheduler.step()
    return seen


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.scratch += 1
        return self.layers(x)


X = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))
Y = X.sum(1, keepdim=True) + 0.1
BATCHES = [*zip(X.split(8), Y.split(8), strict=True)]


def loss_of(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def train(model, optimizer, k):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, BATCHES[k % len(BATCHES)])
        loss.backward()
        return loss.detach()

    optimizer.step(closure)


OPTIMIZERS = {
    "AdaBelief": lambda m: steepest.AdaBelief(m.parameters(), lr=0.02),
    "AdaBound": lambda m: steepest.AdaBound(m.parameters(), lr=0.02),
    "tensor lr": lambda m: torch.optim.Adam(  # one for both groups
        [{"params": layer.parameters()} for layer in m.layers if [*layer.parameters()]],
        lr=torch.tensor(0.02),
    ),
    "torch's Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.02),
    "Lookahead": lambda m: steepest.Lookahead(steepest.AdamW(m.parameters(), lr=0.02), k=4),
}
