"""One thread for torch: the models are small and the machine has other work."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
