"""Hugging Face Trainer: optimizer and schedule through `optimizers=`, resume from a checkpoint.

pip install transformers accelerate
python trainer.py
python trainer.py --resume out/checkpoint-30
"""

import argparse
import inspect
import textwrap

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed
from transformers import get_cosine_schedule_with_warmup as cosine

import steepest

STEPS, LENGTH = 60, 32


def main(resume: str | None) -> None:
    set_seed(0)
    text = torch.tensor(list(inspect.getsource(textwrap).encode()))  # bytes are the tokens
    chunks = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)
    data = [{"input_ids": chunk, "labels": chunk} for chunk in chunks]
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)

    groups = steepest.param_groups(model, weight_decay=0.1, decay_embeddings=False)
    print(groups)
    optimizer = steepest.AdamW(groups, lr=1e-2)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir="out",
            max_steps=STEPS,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
            save_steps=STEPS // 2,
            logging_steps=STEPS // 6,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=data,
        optimizers=(optimizer, cosine(optimizer, STEPS // 10, STEPS)),
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    for step, loss in (losses[0], losses[-1]):
        print(f"step {step}: loss {loss}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", metavar="FOLDER")
    main(parser.parse_args().resume)
