"""A task of your own, declared: steepest race race_declarative.py"""

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MAXIMIZE = "accuracy"  # or MINIMIZE = "...": what the verdict is about
STEPS = 120
features, kinds = load_wine(return_X_y=True)
features = torch.tensor((features - features.mean(0)) / features.std(0), dtype=torch.float32)
rows = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))
parts = dict(zip(("train", "validation", "test"), rows.split([80, 49, 49]), strict=True))
data = {name: TensorDataset(features[r], torch.tensor(kinds)[r]) for name, r in parts.items()}


def task(seed):  # torch, numpy and random are seeded already
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(model, split):  # "validation" chooses, "test" is reported
        x, y = data[split].tensors
        return (model(x).argmax(1) == y).float().mean()

    model = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, loss, DataLoader(data["train"], batch_size=16, shuffle=True), evaluate
