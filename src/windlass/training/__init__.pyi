from windlass.training.config import TrainConfig
from windlass.training.data import Batch, Place, Row, Source

__all__ = ["Batch", "Place", "Row", "Source", "TrainConfig"]
