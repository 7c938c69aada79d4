"""An image script in the style of timm: optimizer by name, layer decay, gradient accumulation,
clipping, a moving average of the model, channels last, automatic mixed precision, resume.

    python images.py --opt adabelief --lr 3e-3
    python images.py --resume checkpoint-4.pt
"""

import argparse

import torch
from torch import nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import steepest

EPOCHS, IMAGES, BATCH, ACCUMULATE = 8, 512, 32, 2


def block(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU())


def main(opt: str, lr: float, resume: str | None) -> None:
    torch.manual_seed(0)
    labels = torch.randint(4, (IMAGES,))
    images = torch.randn(IMAGES, 3, 16, 16) + 0.5 * torch.randn(4, 3, 16, 16)[labels]
    images = images.to(memory_format=torch.channels_last)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    model = nn.Sequential(block(3, 16), block(16, 32), block(32, 32), head)
    model.to(memory_format=torch.channels_last)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True)

    groups = steepest.param_groups(model, weight_decay=0.05, lr=lr, layer_decay=0.9)
    print(groups)
    optimizer = steepest.optimizer(opt, groups, lr=lr)
    updates = EPOCHS * IMAGES // (BATCH * ACCUMULATE)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    scaler = torch.amp.GradScaler("cpu")  # float16 needs it; bfloat16 can do without

    parts, start = [model, average, optimizer, scheduler, scaler], 0
    if resume:
        saved = torch.load(resume, weights_only=True)
        for part, state in zip(parts, saved["parts"], strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(saved["rng"])
        start = saved["epoch"]

    for epoch in range(start, EPOCHS):
        total = 0.0
        for index, batch in enumerate(torch.randperm(IMAGES).split(BATCH), 1):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            scaler.scale(loss / ACCUMULATE).backward()
            total += loss.item() * BATCH / IMAGES
            if index % ACCUMULATE == 0:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                average.update_parameters(model)
                scheduler.step()  # per update, not per epoch
        print(f"epoch {epoch + 1}: loss {total:.6f}")
        states, rng = [part.state_dict() for part in parts], torch.get_rng_state()
        saved = {"parts": states, "rng": rng, "epoch": epoch + 1}
        torch.save(saved, f"checkpoint-{epoch + 1}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--opt", default="adabelief", help="any name from `steepest list`")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--resume", metavar="FILE")
    main(**vars(parser.parse_args()))
