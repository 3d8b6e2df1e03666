"""Critics turn an execution, and what its consumers said of it, into gradients and feedback."""

from lg_textgrad.critics.automatic import AutoCritic
from lg_textgrad.critics.base import Blame, Critic, CriticRequest, Critique, Producer, RunRequest
from lg_textgrad.critics.node import LLMCritic
from lg_textgrad.critics.proven import ProvenCredit
from lg_textgrad.critics.self_rewarding import SelfRewardingCritic
from lg_textgrad.critics.whole import TraceCritic

__all__ = [
    "AutoCritic",
    "Blame",
    "Critic",
    "CriticRequest",
    "Critique",
    "LLMCritic",
    "Producer",
    "ProvenCredit",
    "RunRequest",
    "SelfRewardingCritic",
    "TraceCritic",
]
