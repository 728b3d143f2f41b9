"""One training loop for every stage: `train(task, data, config, run_dir)`."""

from .config import TrainConfig
from .log import read_log
from .loop import Trained, train
from .state import load_ema

__all__ = ["TrainConfig", "Trained", "load_ema", "read_log", "train"]
