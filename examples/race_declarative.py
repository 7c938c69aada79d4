"""Your own task, declared: steepest race race_declarative.py"""

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

MAXIMIZE = "accuracy"  # or MINIMIZE = "...": the metric of the verdict
STEPS = 120
features, classes = load_wine(return_X_y=True)
features = torch.tensor((features - features.mean(0)) / features.std(0), dtype=torch.float32)
rows = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
splits = dict(zip(("train", "validation", "test"), rows.split([80, 49, 49]), strict=True))
data = {name: TensorDataset(features[r], torch.tensor(classes)[r]) for name, r in splits.items()}


def task(seed):  # the race has seeded torch, numpy and random
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(model, split):  # tuning uses "validation", the report "test"
        x, y = data[split].tensors
        return (model(x).argmax(1) == y).float().mean()

    model = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, loss, DataLoader(data["train"], batch_size=16, shuffle=True), evaluate
