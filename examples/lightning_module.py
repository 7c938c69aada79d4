"""PyTorch Lightning: configure_optimizers, a schedule per step, accumulation, resume.

pip install pytorch-lightning
python lightning_module.py
python lightning_module.py --resume checkpoints/epoch=4.ckpt
"""

import argparse

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import steepest


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 2))

    def training_step(self, batch, index):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs), labels)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        print(f"epoch {self.current_epoch + 1}: loss {self.trainer.callback_metrics['loss']:.6f}")

    def configure_optimizers(self):
        groups = steepest.param_groups(self, weight_decay=0.05)
        optimizer = steepest.AdaBelief(groups, lr=1e-2)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def main(resume: str | None) -> None:
    pl.seed_everything(0, verbose=False)
    inputs = torch.randn(512, 16)
    data = TensorDataset(inputs, inputs[:, :8].sum(1).gt(0).long())
    # Lightning sets this sampler's epoch, so a resumed run draws the same order
    sampler = DistributedSampler(data, num_replicas=1, rank=0, seed=0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=10,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=[ModelCheckpoint("checkpoints", "{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), DataLoader(data, 32, sampler=sampler), ckpt_path=resume)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--resume", metavar="FILE")
    main(parser.parse_args().resume)
