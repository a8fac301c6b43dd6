"""A GAN on points of a circle, with two optimizers and manual optimization, as Lightning's tutorial has it."""

import math

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class CircleData(L.LightningDataModule):
    def __init__(self, batch_size: int = 64, num_points: int = 1024):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        angles = torch.rand(self.hparams.num_points, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
        self.points = TensorDataset(torch.stack([angles.cos(), angles.sin()], dim=1))

    def train_dataloader(self):
        return DataLoader(self.points, batch_size=self.hparams.batch_size, shuffle=True)


def mlp(fan_in: int, hidden: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(fan_in, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, fan_out))


class GAN(L.LightningModule):
    def __init__(self, latent_dim: int = 8, hidden: int = 32, lr: float = 0.001, b1: float = 0.5):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = mlp(latent_dim, hidden, 2)
        self.discriminator = mlp(2, hidden, 1)

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, y_hat, y):
        return nn.functional.binary_cross_entropy_with_logits(y_hat, y)

    def training_step(self, batch):
        (points,) = batch
        opt_g, opt_d = self.optimizers()
        z = torch.randn(len(points), self.hparams.latent_dim).type_as(points)
        real, fake = torch.ones(len(points), 1).type_as(points), torch.zeros(len(points), 1).type_as(points)

        self.toggle_optimizer(opt_g)
        g_loss = self.adversarial_loss(self.discriminator(self(z)), real)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        opt_g.step()
        opt_g.zero_grad()
        self.untoggle_optimizer(opt_g)

        self.toggle_optimizer(opt_d)
        real_loss = self.adversarial_loss(self.discriminator(points), real)
        d_loss = (real_loss + self.adversarial_loss(self.discriminator(self(z).detach()), fake)) / 2
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss)
        opt_d.step()
        opt_d.zero_grad()
        self.untoggle_optimizer(opt_d)

    def configure_optimizers(self):
        betas = (self.hparams.b1, 0.999)
        opt_g = torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr, betas=betas)
        opt_d = torch.optim.Adam(self.discriminator.parameters(), lr=self.hparams.lr, betas=betas)
        return [opt_g, opt_d], []


if __name__ == "__main__":
    L.seed_everything(1)
    L.Trainer(max_epochs=3, accelerator="cpu").fit(GAN(), CircleData())
