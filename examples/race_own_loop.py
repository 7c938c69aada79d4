"""Your own task with its own loop: steepest race race_own_loop.py --optimizers signs,adamw"""

import torch
from sklearn.datasets import load_wine
from torch import nn

import steepest
from steepest.ops import sign

MAXIMIZE, STEPS = "accuracy", 120  # or MINIMIZE = "..."; --steps replaces STEPS
features, classes = map(torch.tensor, load_wine(return_X_y=True))
features = ((features - features.mean(0)) / features.std(0)).float()
train_rows, validation, test = torch.randperm(178, generator=torch.Generator()).split([80, 49, 49])


@steepest.rule  # your own optimizer may enter too
def signs(p, g, m, *, lr=1e-2, beta=0.9):
    m = beta * m + (1 - beta) * g
    return p - lr * sign(m), m


def train(make_optimizer, report, seed):  # the race has seeded torch, numpy and random
    model = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = make_optimizer(model)  # its step() also steps the entry's schedule, if any
    for step in range(1, STEPS + 1):
        rows = train_rows[torch.randint(len(train_rows), (16,))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(features[rows]), classes[rows]).backward()
        optimizer.step()
        if step % 10 == 0:
            if hasattr(optimizer, "eval"):  # Schedule-Free is evaluated at its average
                optimizer.eval()
            correct = (model(features).argmax(1) == classes).float()
            report(step, validation=correct[validation].mean(), test=correct[test].mean())
            if hasattr(optimizer, "train"):
                optimizer.train()
