"""AdamW replaced by LAMB in an ordinary loop: two interleaved spirals, told apart by a small network."""

import torch
from torch import nn

from largebatch import LAMB, layer_groups

BATCH, STEPS, WARMUP_STEPS = 1024, 200, 20


def spirals(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points [samples, 2] and their labels [samples]."""
    label = torch.randint(2, (samples,))
    turn = torch.rand(samples) * 3 * torch.pi
    angle = turn + torch.pi * label
    points = torch.stack([angle.cos(), angle.sin()], dim=1) * turn.unsqueeze(1) / 10
    return points + 0.01 * torch.randn(samples, 2), label


def main() -> float:
    """Train and return the accuracy on new points."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 2))
    # Before: optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer = LAMB(layer_groups(model, weight_decay=0.01), lr=3e-2, max_grad_norm=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (STEPS - step) / (STEPS - WARMUP_STEPS))
    )
    for step in range(STEPS):
        points, label = spirals(BATCH)
        loss = nn.functional.cross_entropy(model(points), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step:3}  loss {loss.item():.3f}  gradient norm {optimizer.grad_norm().item():.2f}")
    points, label = spirals(4096)
    return float((model(points).argmax(dim=1) == label).float().mean())


if __name__ == "__main__":
    print(f"accuracy on new points: {main():.1%}")
