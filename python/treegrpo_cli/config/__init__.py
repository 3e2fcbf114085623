"""Every setting with its default, its limit and its meaning; files and overrides."""

from treegrpo_cli.config.sections.advantage import AdvantageConfig
from treegrpo_cli.config.sections.budget import BudgetConfig
from treegrpo_cli.config.sections.data import DataConfig
from treegrpo_cli.config.sections.environment import EnvironmentConfig
from treegrpo_cli.config.sections.limits import LimitsConfig
from treegrpo_cli.config.sections.loss import LossConfig
from treegrpo_cli.config.sections.model import ModelConfig
from treegrpo_cli.config.sections.optimizer import OptimizerConfig
from treegrpo_cli.config.sections.reward import RewardConfig
from treegrpo_cli.config.sections.rollout import RolloutConfig
from treegrpo_cli.config.sections.sampler import SamplerConfig
from treegrpo_cli.config.sections.selection import SelectionConfig
from treegrpo_cli.config.sections.train import TrainConfig
from treegrpo_cli.config.settings import Config

__all__ = [
    "AdvantageConfig",
    "BudgetConfig",
    "Config",
    "DataConfig",
    "EnvironmentConfig",
    "LimitsConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RewardConfig",
    "RolloutConfig",
    "SamplerConfig",
    "SelectionConfig",
    "TrainConfig",
]
