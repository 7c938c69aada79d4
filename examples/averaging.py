"""Weight averaging with torch's swa_utils: over the last epochs (SWA), or exponential (EMA).

python averaging.py
python averaging.py --resume checkpoint-8.pt
"""

import argparse

import torch
from torch import nn
from torch.optim import swa_utils

import steepest

EPOCHS, START, BATCH = 12, 6, 32  # averaging begins after START epochs


def main(average: str, resume: str | None) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(512, 16)
    labels = inputs[:, :8].sum(1).gt(0).long()
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
    average_fn = swa_utils.get_ema_multi_avg_fn(0.9) if average == "ema" else None
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=average_fn)

    optimizer = steepest.AdaBelief(model.parameters(), lr=2e-2)
    scheduler = swa_utils.SWALR(optimizer, swa_lr=1e-2, anneal_epochs=START)
    parts, start = [model, averaged, optimizer, scheduler], 0
    if resume:
        saved = torch.load(resume, weights_only=True)
        for part, state in zip(parts, saved["parts"], strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(saved["rng"])
        start = saved["epoch"]

    for epoch in range(start, EPOCHS):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(inputs)).split(BATCH):
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * BATCH / len(inputs)
            if average == "ema":
                averaged.update_parameters(model)  # after every step
        if average == "swa" and epoch >= START:
            averaged.update_parameters(model)  # after every epoch
        scheduler.step()
        print(f"epoch {epoch + 1}: loss {total:.6f}")
        states, rng = [part.state_dict() for part in parts], torch.get_rng_state()
        saved = {"parts": states, "rng": rng, "epoch": epoch + 1}
        torch.save(saved, f"checkpoint-{epoch + 1}.pt")

    swa_utils.update_bn(inputs.split(BATCH), averaged)  # the averaged model has seen no batch yet
    averaged.eval()
    print(f"averaged: loss {nn.functional.cross_entropy(averaged(inputs), labels).item():.6f}")
    torch.save(averaged.module.state_dict(), "averaged.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--average", choices=["swa", "ema"], default="swa")
    parser.add_argument("--resume", metavar="FILE")
    main(**vars(parser.parse_args()))
