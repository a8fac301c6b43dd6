"""One step of a noisy wave from the 24 before it: a plain pytorch_lightning module and data module."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Windows(Dataset):
    def __init__(self, series: torch.Tensor, length: int):
        self.series, self.length = series, length

    def __len__(self):
        return len(self.series) - self.length

    def __getitem__(self, i):
        return {"past": self.series[i : i + self.length, None], "future": self.series[i + self.length]}


class WaveData(pl.LightningDataModule):
    def __init__(self, length: int = 24, batch_size: int = 32, hours: int = 600):
        super().__init__()
        self.length, self.batch_size, self.hours = length, batch_size, hours

    def setup(self, stage=None):
        time = torch.arange(self.hours, dtype=torch.float32)
        noise = torch.randn(self.hours, generator=torch.Generator().manual_seed(3))
        series = torch.sin(time / 12 * torch.pi) + 0.1 * noise
        cuts = int(0.7 * self.hours), int(0.85 * self.hours)
        self.mean, self.std = series[: cuts[0]].mean(), series[: cuts[0]].std()
        scaled = (series - self.mean) / self.std
        self.train, self.val, self.test = (
            Windows(part, self.length) for part in (scaled[: cuts[0]], scaled[cuts[0] : cuts[1]], scaled[cuts[1] :])
        )

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=self.batch_size)


class LSTMForecast(pl.LightningModule):
    def __init__(self, hidden: int = 16, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.lstm = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, past):
        return self.head(self.lstm(past)[0][:, -1]).squeeze(-1)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch["past"]), batch["future"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self(batch["past"]), batch["future"]), prog_bar=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.mse_loss(self(batch["past"]), batch["future"]))

    def predict_step(self, batch, batch_idx):
        return self(batch["past"])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)}


if __name__ == "__main__":
    pl.seed_everything(1)
    trainer = pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=[pl.callbacks.ModelCheckpoint(monitor="val_loss")])
    data = WaveData()
    trainer.fit(LSTMForecast(), data)
    trainer.test(datamodule=data, ckpt_path="best")
