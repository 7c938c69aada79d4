"""A plain PyTorch loop: parameter groups, a schedule, clipping, checkpoints, exact resume.

python plain.py
python plain.py --resume checkpoint-50.pt
"""

import argparse

import torch
from torch import nn

import steepest

STEPS = 100


def main(resume: str | None) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(512, 16)
    labels = inputs[:, :8].sum(1).gt(0).long()
    model = nn.Sequential(
        nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 2)
    )

    groups = steepest.param_groups(model, weight_decay=0.05)
    print(groups)  # shows which parameters decay, and why
    optimizer = steepest.AdaBelief(groups, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    start = 0
    if resume:
        saved = torch.load(resume, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["rng"])  # batches and dropout continue where they stopped
        start = saved["step"]

    for step in range(start, STEPS):
        batch = torch.randint(512, (64,))
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {loss.item():.6f}")
        if (step + 1) % 50 == 0:
            parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            saved = {name: part.state_dict() for name, part in parts.items()}
            saved |= {"rng": torch.get_rng_state(), "step": step + 1}
            torch.save(saved, f"checkpoint-{step + 1}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", metavar="FILE")
    main(parser.parse_args().resume)
