from torch import nn


class DenseNet(nn.Module):
    """A fully connected network on flattened pictures."""

    def __init__(self, input_size: int = 64, hidden: tuple[int, ...] = (64, 32), output_size: int = 10) -> None:
        super().__init__()
        sizes = [input_size, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in zip(sizes, sizes[1:]):
            layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU()]
        self.model = nn.Sequential(*layers, nn.Linear(sizes[-1], output_size))

    def forward(self, x):
        return self.model(x)
