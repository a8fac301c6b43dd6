"""Which of four tones is in a WAV file: clips of different lengths, padded by a collate function of our own."""

import math
import wave
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

CLASSES = ("low", "middle", "high", "noise")


def make(folder: str, clips: int = 160, rate: int = 4000) -> None:
    """Write `clips` WAV files, CLASS-NUMBER.wav, unless they are there."""
    if list(Path(folder).glob("*.wav")):
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    for i in range(clips):
        label = i % len(CLASSES)
        length = int(rate * (0.1 + 0.1 * torch.rand((), generator=random)))
        sound = torch.randn(length, generator=random) * (0.1 if label < 3 else 0.5)
        if label < 3:
            sound += 0.5 * torch.sin(torch.arange(length) * 2 * math.pi * (200, 500, 1100)[label] / rate)
        with wave.open(f"{folder}/{CLASSES[label]}-{i:04}.wav", "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((sound.clamp(-1, 1) * 32767).to(torch.int16).numpy().tobytes())


class Clips(Dataset):
    def __init__(self, folder: str, first: int, last: int):
        self.paths = sorted(Path(folder).glob("*.wav"), key=lambda path: path.stem[-4:])[first:last]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with wave.open(str(self.paths[i]), "rb") as file:
            sound = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
        return sound.float() / 32768, CLASSES.index(self.paths[i].stem.split("-")[0])


def pad(batch):
    sounds, labels = zip(*batch)
    lengths = torch.tensor([len(sound) for sound in sounds])
    return nn.utils.rnn.pad_sequence(sounds, batch_first=True), lengths, torch.tensor(labels)


def train_loader(folder: str, batch_size: int = 16) -> DataLoader:
    make(folder)
    return DataLoader(Clips(folder, 0, 120), batch_size, shuffle=True, collate_fn=pad)


def val_loader(folder: str, batch_size: int = 16) -> DataLoader:
    make(folder)
    return DataLoader(Clips(folder, 120, 160), batch_size, collate_fn=pad)


class ToneNet(nn.Module):
    def __init__(self, channels: int = 16):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(1, channels, 65, 16), nn.ReLU(), nn.Conv1d(channels, channels, 5), nn.ReLU()
        )
        self.head = nn.Linear(channels, len(CLASSES))

    def forward(self, sounds, lengths):
        features = self.conv(sounds[:, None])
        frames = ((lengths - 65) // 16 + 1 - 4).clamp(min=1)
        inside = torch.arange(features.shape[-1], device=sounds.device) < frames[:, None]
        return self.head((features * inside[:, None]).sum(-1) / frames[:, None])


def main(folder: str = "data", epochs: int = 5, lr: float = 0.005) -> None:
    torch.manual_seed(1)
    model = ToneNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        model.train()
        for sounds, lengths, labels in train_loader(folder):
            loss = nn.functional.cross_entropy(model(sounds, lengths), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        right = total = 0
        with torch.no_grad():
            for sounds, lengths, labels in val_loader(folder):
                right += (model(sounds, lengths).argmax(-1) == labels).sum().item()
                total += len(labels)
        print(f"epoch {epoch}: loss {loss.item():.3f}, val accuracy {right / total:.3f}")


if __name__ == "__main__":
    main()
