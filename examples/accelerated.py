"""Hugging Face Accelerate: prepare, accumulate, clip, save_state and load_state.

pip install transformers accelerate
python accelerated.py
python accelerated.py --resume state-2
"""

import argparse
import inspect
import math
import textwrap

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch.utils.data import DataLoader
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import steepest

EPOCHS, LENGTH = 4, 32


def main(resume: str | None) -> None:
    set_seed(0)
    text = torch.tensor(list(inspect.getsource(textwrap).encode()))  # bytes are the tokens
    chunks = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": LENGTH}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_dropout": 0.1}
    config = GPTNeoXConfig(vocab_size=256, **sizes, **depth)
    model = GPTNeoXForCausalLM(config)

    # the order depends only on the epoch's number, so a resumed run draws the same batches
    order = DataLoaderConfiguration(use_seedable_sampler=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, dataloader_config=order)
    loader = DataLoader(chunks, batch_size=16, shuffle=True, drop_last=True)
    groups = steepest.param_groups(model, weight_decay=0.1, decay_embeddings=False)
    optimizer = steepest.AdaBelief(groups, lr=5e-3)
    steps = EPOCHS * math.ceil(len(loader) / 2)  # the scheduler steps once per accumulated step
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    start = 0
    if resume:
        accelerator.load_state(resume)  # model, optimizer, scheduler and random states
        start = int(resume.rsplit("-", 1)[1])

    for epoch in range(start, EPOCHS):
        loader.set_epoch(epoch)
        total = 0.0
        for batch in loader:
            with accelerator.accumulate(model):
                loss = model(input_ids=batch, labels=batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            total += loss.item()
        rate = scheduler.get_last_lr()[0]
        accelerator.print(f"epoch {epoch + 1}, lr {rate:.2g}: loss {total / len(loader):.6f}")
        accelerator.save_state(f"state-{epoch + 1}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", metavar="FOLDER")
    main(parser.parse_args().resume)
